// Addresses to pages, the bar above them, and what comes in while a run grows.

import { ask, listen, Refused, setToken } from "./ask.js";
import { empty, failed, fill, h, loading } from "./dom.js";
import { Evaluations } from "./evaluation.js";
import { Groups } from "./groups.js";
import { Overview } from "./overview.js";
import { Playground } from "./playground.js";

const PAGES = { overview: Overview, groups: Groups, evaluation: Evaluations, playground: Playground };
const STAYS = ["groups", "playground"];
const NEEDS_NO_RUN = ["evaluation", "playground"];
const CALM_MS = 900;
const LOOK_MS = 30_000;
const SOON_MS = 5_000;

class App {
  constructor() {
    this.main = document.getElementById("main");
    this.select = document.getElementById("run");
    this.live = document.getElementById("live");
    this.select.addEventListener("change", () => { location.hash = this.addressOf(STAYS.includes(this.name) ? this.name : "overview", { run: this.select.value }); });
    document.getElementById("theme").addEventListener("click", turnTheme);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("tempsamp-theme")));
    addEventListener("hashchange", () => this.go());
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();  // the address says which page, not which place
      this.main.focus({ preventScroll: true });
      scrollTo(0, 0);
    });
    this.stopped = new AbortController();
  }

  async start() {
    fill(this.main, loading("Runs are looked for", 3));
    try {
      this.runs = await ask("runs");
    } catch (error) {
      this.refused(error) || fill(this.main, failed(error, () => this.start()));
      return;
    }
    // Who started a dash over no run yet waits for one, unless it was started with somebody to ask.
    this.asks = !this.runs.length && await ask("home").then((home) => home.asks, () => false);
    this.listRuns();
    clearInterval(this.looking);
    this.looking = setInterval(() => this.lookAgain(), this.runs.length ? LOOK_MS : SOON_MS);
    this.go();
  }

  listRuns() {
    fill(this.select, this.runs.map((run) => h("option", { value: run.name }, run.name)));
    this.select.disabled = this.runs.length < 2;
    this.select.parentElement.hidden = !this.runs.length;
    if (this.run) this.select.value = this.run;
  }

  /** Runs begin and end while the page is open. */
  async lookAgain() {
    const found = await ask("runs").catch(() => null);
    if (!found?.length) return;
    const names = (runs) => runs.map((run) => run.name).sort().join("\n");
    const changed = names(found) !== names(this.runs);
    const first = !this.runs.length;
    this.runs = found;
    if (changed) this.listRuns();
    if (first && !NEEDS_NO_RUN.includes(this.name)) this.go();
  }

  /** Show what the address says. */
  go() {
    if (!this.runs) return;
    const [, name, query] = /^#\/(\w+)\??(.*)$/.exec(location.hash) || [];
    const parameters = new URLSearchParams(query);
    const run = this.runs.some((one) => one.name === parameters.get("run")) ? parameters.get("run") : this.runs[0]?.name;
    const page = name in PAGES ? name : run || !this.asks ? "overview" : "playground";
    const same = this.page && page === this.name && run === this.run;
    this.parameters = parameters;
    [this.name, this.run] = [page, run];
    this.bar();
    if (!run && !NEEDS_NO_RUN.includes(page)) this.nothing();
    else if (same && this.page.turn) this.page.turn(parameters);
    else if (!same) this.open(page, parameters);
  }

  /** Where a run should be shown and there is none. */
  nothing() {
    this.leave();
    fill(this.main, empty("No run here yet", "A run folder (learner.run_dir) appears here once its learner has begun; this page looks again by itself.",
      h("p", {}, h("a", { href: this.addressOf("evaluation", {}) }, "Evaluations in this folder")),
      h("p", {}, h("a", { href: this.addressOf("playground", {}) }, "Ask a model about a video"))));
  }

  leave() {
    this.stopped.abort();
    this.page?.end();
    this.page = null;
    this.stopped = new AbortController();
  }

  open(page, parameters) {
    this.leave();
    const { signal } = this.stopped;
    this.page = new PAGES[page](this, parameters);
    fill(this.main, this.page.element);
    scrollTo(0, 0);
    this.page.load(signal);
    if (!this.run) return;
    this.phase(this.runs.find((run) => run.name === this.run).phase, false);
    const grow = calmly(() => (this.page.grow ? this.page.grow(signal) : this.page.load(signal)), signal);
    listen({ run: this.run }, {
      signal,
      lost: () => { this.live.className = "live lost"; this.live.textContent = "no connection"; },
      on: (event, content) => {
        if (event === "hello") this.phase(this.seen, this.answers);
        if (event === "fleet") this.phase(this.seen, content.fleet !== null);
        if (event === "changed") grow();
        this.page.on?.(event, content);
      },
    });
  }

  bar() {
    this.select.value = this.run;
    document.title = `${this.run ? `${this.run} · ` : ""}tempsamp dash`;
    for (const link of document.querySelectorAll("#tabs a")) {
      link.href = this.addressOf(link.dataset.page, { run: this.run });
      if (link.dataset.page === this.name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.querySelector(".mark").href = this.addressOf("overview", { run: this.run });
  }

  /** What the dot in the bar says. */
  phase(seen, answers) {
    this.seen = seen;
    this.answers = answers;
    const training = this.seen === "training";
    this.live.className = `live ${training ? "training" : ""}`;
    this.live.textContent = training ? (answers ? "live" : "growing") : { finished: "finished", quiet: "quiet" }[this.seen] || "";
  }

  addressOf(page, parameters) {
    const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== ""));
    return `#/${page}${query.size ? `?${query}` : ""}`;
  }

  /** Of a page about this run. */
  address(page, parameters) {
    return this.addressOf(page, { ...parameters, run: this.run });
  }

  /** Go on without a step back. */
  replace(page, parameters) {
    history.replaceState(null, "", this.address(page, parameters));
    this.go();
  }

  /** Keep what a form says in the address, without going anywhere. */
  note(found, names) {
    for (const name of names) this.parameters.delete(name);
    for (const [name, value] of Object.entries(found)) this.parameters.set(name, value);
    history.replaceState(null, "", this.address(this.name, Object.fromEntries(this.parameters)));
  }

  /** Ask for a token where one is wanted; false for any other error. */
  refused(error) {
    if (!(error instanceof Refused)) return false;
    const field = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
    this.stopped.abort();
    fill(this.main, h("form", { class: "state", onsubmit: (event) => {
      event.preventDefault();
      setToken(field.value.trim());
      this.page = null;
      this.start();
    } }, h("h1", {}, "A token, please"), h("p", {}, "This dash was started with one (TEMPSAMP_TOKEN). It is kept until this tab is closed."),
    h("label", { for: "token" }, "Token"), field, h("button", { type: "submit", class: "primary" }, "Open")));
    setToken(null);
    field.focus();
    return true;
  }
}

/** Does it soon after it is asked for, once for all who ask meanwhile, and never twice at a time. */
function calmly(act, signal) {
  let due = false;
  let busy = false;
  return async () => {
    due = true;
    if (busy) return;
    busy = true;
    while (due) {
      await new Promise((resolve) => setTimeout(resolve, CALM_MS));
      due = false;
      if (signal.aborted) return;
      await act();
    }
    busy = false;
  };
}

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("tempsamp-theme", root.dataset.theme);
  dispatchEvent(new Event("tempsamp-theme"));
}

new App().start();
