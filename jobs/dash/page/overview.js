// A run at one glance: a sentence, what to look at, its curves, its services.

import { ask } from "./ask.js";
import { Panels } from "./charts.js";
import { duration, empty, failed, fill, h, loading, plural, short, table } from "./dom.js";

const RANGES = [["All", null], ["Last 1,000", 1000], ["Last 200", 200]];
const POINTS = 480;  // of a curve, at most: jobs/dash/curves.py
const PHASES = { training: "Training", quiet: "Quiet", finished: "Finished", empty: "Not begun" };

export class Overview {
  constructor(app) {
    this.app = app;
    this.top = h("div", { class: "top" }, loading("The run is read", 2));
    this.services = h("section", { class: "services", "aria-labelledby": "services" });
    this.panels = new Panels((low, high) => this.zoom({ low, high, last: null }));
    this.seen = { low: null, high: null, last: null };
    this.tools = h("div", { class: "tools" });
    this.curves = h("section", { "aria-labelledby": "curves" },
      h("div", { class: "head" }, h("h2", { id: "curves" }, "Curves"), this.tools), this.panels.element);
    this.element = h("div", { class: "overview" }, this.top, this.curves, this.services);
    this.showTools();
  }

  async load(signal) {
    const run = this.app.run;
    this.signal = signal;
    try {
      const [overview] = await Promise.all([ask("overview", { run }, signal), this.loadCurves(signal)]);
      this.show(overview);
      this.drew();
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.refused(error) || fill(this.top, failed(error, () => this.load(signal)));
    }
  }

  /** While the run grows its figures are read each time, its curves when their picture changes. */
  async grow(signal) {
    if (!this.drawnAt) {
      await this.load(signal);
      return;
    }
    try {
      const overview = await ask("overview", { run: this.app.run }, signal);
      this.show(overview);
      this.panels.showLatest(overview.latest);
      if (this.moved(overview)) {
        await this.loadCurves(signal);
        this.drew();
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.refused(error) || fill(this.top, failed(error, () => this.load(signal)));
    }
  }

  /** Curves stand as the run was when its figures were read last. */
  drew() {
    this.drawnAt = { step: this.step, validations: this.validations };
  }

  /** Whether steps have come that are a point of their own among those that a curve has room for. */
  moved({ state, validations }) {
    const { low, high, last } = this.seen;
    const came = state.step - this.drawnAt.step;
    if (came < 0 || validations !== this.drawnAt.validations) return true;
    if (high !== null && high <= this.drawnAt.step) return false;
    const span = last ?? state.step - (low ?? 0);
    return came >= Math.max(1, span / POINTS);
  }

  async loadCurves(signal) {
    let { low, high } = this.seen;
    if (this.seen.last && this.step) low = Math.max(1, this.step - this.seen.last + 1);
    const drawn = await ask("curves", { run: this.app.run, low, high }, signal);
    this.curves.hidden = drawn.length === 0;
    this.panels.show(drawn);
  }

  show(overview) {
    const { state, advice, live, run } = overview;
    this.step = state.step;
    this.validations = overview.validations;
    this.app.phase(state.phase, (this.said ?? live).fleet !== null);
    if (state.phase === "empty") {
      fill(this.top, empty(run.has_folder ? "No step yet" : run.name, run.sentence));
    } else {
      fill(this.top,
        h("p", { class: "phase" }, h("span", { class: `chip ${state.phase}` }, PHASES[state.phase]),
          h("span", { class: "runname" }, run.name), run.strategy && h("span", {}, `strategy ${run.strategy}`)),
        h("h1", { class: "sentence" }, state.sentence.replaceAll(" → ", "\u00a0→\u00a0").replaceAll(" %", "\u00a0%")),
        state.steps && h("div", { class: "progress", role: "img", "aria-label": `step ${state.step} of ${state.steps}` },
          h("i", { style: { width: `${Math.min(100, 100 * state.step / state.steps)}%` } })),
        h("dl", { class: "tiles" }, state.tiles.map((tile) => h("div", {}, h("dt", {}, tile.label), h("dd", {}, tile.value, tile.note && h("small", {}, tile.note))))),
        overview.unreadable_lines > 0 && h("p", { class: "note" }, `${plural(overview.unreadable_lines, "line")} of its files could not be read and stand in no figure.`),
        this.advice(advice));
    }
    this.showServices(this.said ?? live);
  }

  advice(found) {
    if (!found.length) return h("p", { class: "fine" }, "Nothing stands out: entropy, ties, parsing, waiting and staleness are where they should be.");
    return h("section", { class: "advice", "aria-label": "What to look at" }, found.map((one) => h("article", { class: `card ${one.level}` },
      h("h3", {}, h("span", { class: "level" }, one.level), one.title), h("p", {}, one.text),
      h("p", { class: "knob" }, h("span", {}, "Where to turn: "), h("code", {}, one.knob)))));
  }

  showServices(live) {
    const heading = h("div", { class: "head" }, h("h2", { id: "services" }, "Services"));
    if (!live.asked) {
      fill(this.services, heading, loading("Services are asked", 1));
      return;
    }
    if (!live.fleet) {
      fill(this.services, heading, h("p", { class: "card note" }, "None answers now; everything above comes from the run folder. ", h("span", { class: "quietly" }, live.silent)));
      return;
    }
    const { learner, queues, replicas } = live.fleet;
    const facts = learner
      ? [learner.phase, learner.version !== null && `version ${learner.version}`, learner.step_s !== null && `${short(learner.step_s)} s a step`].filter(Boolean).join(", ")
      : `no answer: ${live.fleet.learner_unreachable}`;
    const lines = h("dl", { class: "facts" },
      h("div", {}, h("dt", {}, "learner"), h("dd", {}, facts, learner?.last_problem && h("small", {}, problem(learner.last_problem)))),
      queues && h("div", {}, h("dt", {}, "queues"), h("dd", {}, `${queues.prompts_waiting} prompts wait, ${queues.prompts_claimed} in work, ${queues.groups_unread} groups unread, ${queues.dead_letters} dead letters`)));
    fill(this.services, heading, lines, replicas.length
      ? table(["replica", "state", "version", "behind", "tokens/s", "groups", "failed", "last problem"], replicas.map((replica) => replicaRow(replica, learner)),
        { numeric: [false, false, true, true, true, true, true, false], label: "Replicas" })
      : h("p", { class: "card note" }, "No replica is registered: the learner waits for one (tempsamp rollout serve)."));
  }

  on(name, content) {
    if (name !== "fleet") return;
    this.said = content;
    this.showServices(content);
    // What is wrong with a replica is said above, too.
    if (content.fleet) ask("overview", { run: this.app.run }, this.signal).then((overview) => this.show(overview)).catch(() => {});
  }

  showTools() {
    const zoomed = this.seen.low !== null || this.seen.high !== null;
    fill(this.tools,
      zoomed ? h("span", { class: "zoomed" }, `steps ${this.seen.low} to ${this.seen.high}`) : h("span", { class: "tip" }, "drag over a chart to look closer"),
      h("div", { class: "segments", role: "group", "aria-label": "Steps shown" }, RANGES.map(([label, last]) => h("button", {
        type: "button", "aria-pressed": String(!zoomed && this.seen.last === last),
        onclick: () => this.zoom({ low: null, high: null, last }),
      }, label))));
  }

  zoom(seen) {
    this.seen = seen;
    this.showTools();
    this.loadCurves().then(() => this.drew()).catch((error) => this.app.refused(error));
  }

  end() {
    this.panels.end();
  }
}

function replicaRow({ status, report, unreachable }, learner) {
  const newest = learner?.version;
  const behind = newest !== null && newest !== undefined && status.version !== null ? newest - status.version : null;
  const said = report ? (report.trouble ? `answers nothing: ${report.trouble}` : problem(report.last_problem)) : `${unreachable}; was ${status.phase}`;
  const state = report ? h("span", { class: `chip ${status.phase}` }, status.phase) : h("span", { class: "chip lost" }, "no answer");
  return [h("code", {}, status.replica), state, status.version ?? "–", behind ?? "–",
    report ? Math.round(report.tokens_per_s).toLocaleString("en") : "–", status.completed_groups.toLocaleString("en"), status.failed_prompts.toLocaleString("en"), said];
}

function problem(last) {
  return last ? `${duration(last.age_s)} ago: ${last.event}${last.error ? `: ${last.error}` : ""}` : "";
}
