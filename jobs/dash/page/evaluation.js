// Evaluations below the folder: a list, one in full, two compared.

import { ask } from "./ask.js";
import { empty, failed, fill, h, loading, plural, table } from "./dom.js";

export class Evaluations {
  constructor(app, parameters) {
    this.app = app;
    this.element = h("div", { class: "evaluations" }, loading("Evaluations are read", 3));
    this.parameters = parameters;
  }

  turn(parameters) {
    this.parameters = parameters;
    this.load(this.signal);
  }

  async load(signal) {
    this.signal = signal;
    const [one, a, b] = ["evaluation", "a", "b"].map((name) => this.parameters.get(name));
    try {
      if (a && b) this.showCompared(a, b, await ask("evaluations/compared", { a, b }, signal));
      else if (one) this.showOne(await ask("evaluations/one", { run: this.app.run, evaluation: one }, signal));
      else this.showAll(await ask("evaluations", {}, signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.refused(error) || fill(this.element, (one || a) && this.back(), failed(error, () => this.load(signal)));
    }
  }

  showAll(found) {
    if (!found.length) {
      fill(this.element, empty("No evaluation yet", "What tempsamp eval writes below this folder, and each validation of a run, is listed here."));
      return;
    }
    const chosen = new Set();
    const compare = h("button", { type: "button", class: "primary", disabled: true, onclick: () => {
      const [a, b] = [...chosen].sort();
      location.hash = this.app.address("evaluation", { a, b });
    } }, "Compare two");
    const choose = (name) => h("input", { type: "checkbox", "aria-label": `Compare ${name}`, onchange: (event) => {
      if (event.target.checked) chosen.add(name); else chosen.delete(name);
      compare.disabled = chosen.size !== 2;
    } });
    fill(this.element,
      h("div", { class: "head" }, h("h1", {}, "Evaluations"), compare),
      h("p", { class: "note" }, "Mean IoU by our own protocol, with its 95 % interval. Choose two to compare them query by query."),
      table([h("span", { class: "hidden" }, "choose"), "evaluation", "answered by", "mode", "queries", "mIoU", "95 %", "0 to 100"], found.map((one) => [
        choose(one.name), h("a", { href: this.app.address("evaluation", { evaluation: one.name }) }, one.name), one.model, one.label,
        one.answered === one.queries ? String(one.queries) : `${one.answered} of ${one.queries}`,
        one.miou === null ? "–" : one.miou.toFixed(1), one.low === null ? "–" : `${one.low.toFixed(1)} to ${one.high.toFixed(1)}`, bar(one),
      ]), { numeric: [false, false, false, false, true, true, true, false], label: "Evaluations" }));
  }

  showOne(page) {
    const { evaluation } = page;
    fill(this.element,
      this.back(), h("h1", {}, evaluation.name), h("p", { class: "meta" }, [evaluation.model, evaluation.label, evaluation.bench].map((text) => h("span", {}, text))),
      ...page.notes.map((note) => h("p", { class: "note" }, note)),
      h("dl", { class: "tiles" }, page.cards.map(([label, value, note]) => h("div", {}, h("dt", {}, label), h("dd", {}, value, h("small", {}, note))))),
      page.histogram.length > 0 && histogram(page.histogram),
      h("section", { class: "tables", "aria-label": "Tables" }, page.tables.map((grid) => grid_(grid))),
      h("section", { "aria-label": "Answers" }, page.cases.map((group) => [h("h2", {}, `${group.title} answers`), h("div", { class: "cases" }, group.cases.map(answered))])),
      page.failed.length > 0 && h("section", {}, h("h2", {}, `${plural(page.num_failed, "query", "queries")} without a span`),
        table(["query", "video", "kind", "said"], page.failed.map((one) => [one.query, one.video, one.kind, one.said]), { label: "Queries without a span" })));
  }

  showCompared(a, b, found) {
    fill(this.element, this.back(), h("h1", {}, "Two evaluations, query by query"),
      h("dl", { class: "facts sides" }, [["A", a], ["B", b]].map(([side, name]) => h("div", {}, h("dt", {}, side), h("dd", {}, h("a", { href: this.app.address("evaluation", { evaluation: name }) }, name))))),
      h("section", { class: "tables", "aria-label": "Differences" }, found.tables.map((grid) => grid_(grid))));
  }

  back() {
    return h("a", { class: "back", href: this.app.address("evaluation", {}) }, "All evaluations");
  }

  end() {}
}

const grid_ = (grid) => h("div", { class: "card grid" }, table(grid.headings, grid.rows, { numeric: grid.numeric, caption: grid.title }), grid.note && h("p", { class: "note" }, grid.note));

/** The interval as a line from 0 to 100 %. */
function bar(one) {
  if (one.low === null) return "";
  return h("span", { class: "interval", "aria-hidden": "true" }, h("i", { style: { left: `${one.low}%`, width: `${Math.max(1, one.high - one.low)}%` } }), h("b", { style: { left: `${one.miou}%` } }));
}

function histogram(counts) {
  const most = Math.max(...counts);
  const width = 100 / counts.length;
  return h("figure", { class: "card histogram" }, h("figcaption", {}, "Queries by IoU"),
    h("div", { class: "columns", role: "img", "aria-label": counts.map((count, n) => `${Math.round(n * width)} to ${Math.round((n + 1) * width)} %: ${count}`).join(", ") },
      counts.map((count) => h("i", { style: { height: `${100 * count / most}%` }, title: String(count) }))),
    h("div", { class: "ends", "aria-hidden": "true" }, ["0", ".25", ".5", ".75", "1"].map((text) => h("span", {}, text))));
}

function answered(one) {
  return h("article", { class: "card case" },
    h("header", {}, h("h3", {}, h("q", {}, one.query)), h("b", {}, `IoU ${one.iou.toFixed(2)}`)),
    h("div", { class: "timeline" },
      one.strip && h("img", { class: "strip", src: one.strip, alt: `Frames of ${one.video}`, loading: "lazy" }),
      h("div", { class: "ticks", "aria-hidden": "true" }, one.ticks.map(([place, label]) => h("span", { class: place > 96 && "end", style: { left: `${place}%` } }, label))),
      row("truth", one.true_bars, "truth"), row("answer", one.answer_bars, "up")),
    h("p", { class: "note" }, `truth ${one.true_text}; answered ${one.answer_text}`));
}

function row(label, places, kind) {
  return h("div", { class: "trow" }, h("span", { class: "who" }, label), h("span", { class: "track" }, places.map((place) => {
    const [left, width] = place.split(";").map((part) => part.split(":")[1]);
    return h("i", { class: `seg ${kind}`, style: { left, width, "--strength": "0.8" } });
  })));
}
