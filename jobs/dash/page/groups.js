// The groups of a run: filters, a list, and the chosen one beside it.

import { ask } from "./ask.js";
import { empty, failed, fill, h, loading, plural, short } from "./dom.js";
import { Group } from "./group.js";
import { dots } from "./timeline.js";

const KINDS = [["all", "All"], ["truth_beat_all", "GT beat all"], ["all_tied", "All tied"], ["unread", "Unread"]];
const ORDERS = [["newest", "Newest first"], ["oldest", "Oldest first"], ["lowest", "Lowest reward first"], ["highest", "Highest reward first"]];
const FIELDS = ["text", "kind", "order", "low", "high", "first_step", "last_step"];
const TYPING_MS = 250;

export class Groups {
  constructor(app, parameters) {
    this.app = app;
    this.list = h("ol", { class: "list", "aria-label": "Groups" });
    this.count = h("p", { class: "count", role: "status" });
    this.more = h("button", { type: "button", class: "plain more", hidden: true, onclick: () => this.loadMore() }, "Show more");
    this.detail = h("div", { class: "detail" });
    this.side = h("section", { class: "side", "aria-label": "List of groups" }, this.filters(parameters), this.count, this.list, this.more);
    this.element = h("div", { class: "groups" }, this.side, this.detail);
    this.groups = [];
    this.turn(parameters);
  }

  filters(parameters) {
    const now = () => this.filter();
    let timer = 0;
    const later = () => { clearTimeout(timer); timer = setTimeout(now, TYPING_MS); };
    const value = (name) => parameters.get(name) ?? "";
    const number = (name, label, placeholder) => h("input", { type: "number", step: "any", name, "aria-label": label, placeholder, value: value(name), oninput: later });
    this.form = h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      h("input", { type: "search", name: "text", placeholder: "Query, video, or row:17", "aria-label": "Query, video or row", value: value("text"), oninput: later, autocomplete: "off" }),
      h("div", { class: "segments", role: "group", "aria-label": "Kind of group" }, KINDS.map(([kind, label]) => h("button", {
        type: "button", data: { kind }, "aria-pressed": String((value("kind") || "all") === kind),
        onclick: (event) => { this.press(event.currentTarget); now(); },
      }, label))),
      h("div", { class: "pair" }, h("span", {}, "reward"), number("low", "Least mean reward", "from"), number("high", "Largest mean reward", "to")),
      h("div", { class: "pair" }, h("span", {}, "step"), number("first_step", "First step", "from"), number("last_step", "Last step", "to")),
      h("select", { name: "order", "aria-label": "Order", onchange: now }, ORDERS.map(([order, label]) => h("option", { value: order, selected: value("order") === order }, label))));
    return this.form;
  }

  press(button) {
    for (const other of this.form.querySelectorAll("[data-kind]")) other.setAttribute("aria-pressed", String(other === button));
  }

  wanted() {
    const fields = new FormData(this.form);
    fields.set("kind", this.form.querySelector('[aria-pressed="true"]').dataset.kind);
    return Object.fromEntries(FIELDS.map((name) => [name, fields.get(name)]).filter(([name, value]) => value && !(name === "kind" && value === "all") && !(name === "order" && value === "newest")));
  }

  filter() {
    this.app.note(this.wanted(), FIELDS);
    this.load(this.signal);
  }

  async load(signal) {
    this.signal = signal;
    if (!this.groups.length) fill(this.list, h("li", {}, loading("Groups are read", 5)));
    try {
      await this.fetch(0, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.refused(error) || fill(this.list, h("li", {}, failed(error, () => this.load(signal))));
    }
  }

  /** While the run grows: as many rows as are shown; those that stay keep their place and focus. */
  async grow(signal) {
    const count = this.groups.length;
    if (!count) {
      await this.load(signal);
      return;
    }
    try {
      await this.fetch(0, signal, count);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.refused(error) || fill(this.list, h("li", {}, failed(error, () => this.load(signal))));
    }
  }

  async loadMore() {
    const first = this.groups.length;
    try {
      await this.fetch(first, this.signal);
      this.list.children[first]?.querySelector("a").focus();
    } catch (error) {
      this.app.refused(error) || fill(this.more, error.message);
    }
  }

  /** A part of the list; from its start on, `least` rows of it. */
  async fetch(offset, signal, least = 0) {
    this.asked = (this.asked || 0) + 1;
    const turn = this.asked;
    const part = (from, more = {}) => ask("groups", { run: this.app.run, ...this.wanted(), offset: from, ...more }, signal);
    const found = await part(offset, this.groups.length ? {} : { at_once: true });
    let groups = offset ? [...this.groups, ...found.groups] : found.groups;
    while (groups.length < Math.min(least, found.total)) {
      const more = (await part(groups.length)).groups;
      if (!more.length) break;
      groups = [...groups, ...more];
    }
    if (turn !== this.asked) return;
    this.groups = groups;
    this.show(found);
    if (found.is_newest) await this.fetch(0, signal);
  }

  show(found) {
    this.element.classList.toggle("bare", found.kept === 0);
    if (found.kept === 0) {
      fill(this.list);
      fill(this.count);
      fill(this.detail, empty("No groups are kept here", "The learner keeps them in groups/ of the run folder: learner.keep_groups.every says how often, 0 is never. Runs of earlier versions have none."));
      return;
    }
    this.count.textContent = found.is_newest ? "The newest groups; the others are read" : found.total === found.kept ? plural(found.total, "group") : `${found.total.toLocaleString("en")} of ${plural(found.kept, "group")}`;
    this.more.hidden = found.is_newest || this.groups.length >= found.total;
    this.setRows(this.groups.length ? this.rows(found.rewards || [0, 1]) : [h("li", {}, empty("None fits", "No group fits these filters."))]);
    this.mark();
    if (!this.chosen && !this.narrow() && this.groups.length) this.open(this.groups[0]);
  }

  /** Elements of the shown groups; one that is there already and would look the same is kept. */
  rows(rewards) {
    const look = JSON.stringify([rewards, this.wanted()]);
    const known = look === this.look ? this.known : new Map();
    this.look = look;
    this.known = new Map(this.groups.map((group) => {
      const key = JSON.stringify(group);
      return [key, known.get(key) ?? this.row(group, rewards)];
    }));
    return [...this.known.values()];
  }

  setRows(rows) {
    const wanted = new Set(rows);
    for (const row of [...this.list.children]) if (!wanted.has(row)) row.remove();
    let at = this.list.firstElementChild;
    for (const row of rows) {
      if (row === at) at = at.nextElementSibling;
      else this.list.insertBefore(row, at);
    }
  }

  row(group, rewards) {
    const where = { step: group.step, prompt: group.prompt_id };
    return h("li", {}, h("a", { href: this.app.address("groups", { ...this.wanted(), ...where }), data: { key: `${group.step}/${group.prompt_id}` } },
      h("span", { class: "query" }, group.query), dots(group, rewards),
      h("span", { class: "meta" }, h("span", {}, `step ${group.step}`), h("span", {}, `row ${group.row_id}`),
        group.best_iou !== null && h("span", {}, `best IoU ${short(group.best_iou)}`),
        group.truth_beat_all && h("span", { class: "badge injected" }, "GT beat all"),
        group.all_tied && h("span", { class: "badge" }, "all tied"),
        group.unread > 0 && h("span", { class: "badge alarm" }, `${group.unread} unread`))));
  }

  /** Another group of the same list, or none. */
  turn(parameters) {
    const step = parameters.get("step");
    this.element.classList.toggle("open", step !== null);
    this.chosen = step === null ? null : { step: Number(step), prompt: parameters.get("prompt") };
    const other = parameters.get("with_step") === null ? null
      : { run: parameters.get("with_run"), step: Number(parameters.get("with_step")), prompt: parameters.get("with_prompt") };
    this.element.classList.toggle("duo", other !== null);
    this.shown?.end();
    this.shown = null;
    this.mark();
    if (this.chosen) {
      this.shown = new Group(this.app, { run: this.app.run, ...this.chosen }, other);
      fill(this.detail, this.shown.element);
      this.shown.load();
    } else if (!this.narrow() && this.groups.length) {
      this.open(this.groups[0]);
    } else {
      fill(this.detail);
    }
  }

  open(group) {
    this.app.replace("groups", { ...this.wanted(), step: group.step, prompt: group.prompt_id });
  }

  narrow() {
    return matchMedia("(max-width: 899px)").matches;
  }

  mark() {
    const key = this.chosen && `${this.chosen.step}/${this.chosen.prompt}`;
    for (const link of this.list.querySelectorAll("a")) {
      if (link.dataset.key === key) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  end() {
    this.shown?.end();
  }
}
