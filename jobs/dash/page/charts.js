// Panels of curves: one cursor and one range over all of them.

import uPlot from "./vendor/uplot.js";
import { h, short } from "./dom.js";

const HEIGHT = 168;
const FAINT = 0.28;
const MARGIN = "200px";

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Many panels in a grid; `onrange(low, high)` when somebody drags over one. */
export class Panels {
  constructor(onrange) {
    this.element = h("div", { class: "panels" });
    this.panels = new Map();
    this.onrange = onrange;
    this.sync = uPlot.sync("steps");
    this.watch = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) {
        const panel = this.panels.get(target.dataset.panel);
        if (panel?.plot && contentRect.width > 0) panel.plot.setSize({ width: contentRect.width, height: HEIGHT });
      }
    });
    // What is out of sight is drawn again once it comes into it.
    this.sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const panel = this.panels.get(target.dataset.panel);
        if (!panel) continue;
        panel.seen = isIntersecting;
        if (isIntersecting && panel.stale) this.refresh(panel);
      }
    }, { rootMargin: MARGIN });
    this.repaint = () => {
      for (const panel of this.panels.values()) panel.shape = null;
      this.show(this.drawn || []);
    };
    addEventListener("tempsamp-theme", this.repaint);
  }

  show(drawn) {
    this.drawn = drawn;
    const names = new Set(drawn.map((panel) => panel.name));
    for (const [name, panel] of this.panels) if (!names.has(name)) this.drop(name, panel);
    drawn.forEach((panel) => this.draw(panel));
  }

  draw(drawn) {
    let panel = this.panels.get(drawn.name);
    if (!panel) {
      panel = { box: h("div", { class: "plot", data: { panel: drawn.name } }), legend: h("ul", { class: "legend" }) };
      panel.card = h("section", { class: "card panel", "aria-labelledby": `panel-${drawn.name}` },
        h("h3", { id: `panel-${drawn.name}` }, drawn.title, drawn.unit && h("small", {}, drawn.unit)),
        h("p", { class: "says" }, drawn.says), panel.legend, panel.box);
      this.panels.set(drawn.name, panel);
      this.element.append(panel.card);
      this.watch.observe(panel.box);
      this.sight.observe(panel.box);
    }
    const curves = drawn.lines.flatMap((lines) => lines.curves);
    panel.legend.replaceChildren(...curves.map((curve) => h("li", {},
      h("i", { class: `tone ${curve.tone}` }), h("span", {}, curve.label), h("b", {}, short(curve.last, 3)))));
    panel.box.setAttribute("role", "img");
    panel.box.setAttribute("aria-label", `${drawn.title}. ${curves.map((curve) => `${curve.label} ${short(curve.last, 3)}`).join(", ")}`);
    // A plot that stays keeps the cursor, and a range that is being dragged, while the run grows.
    const shape = JSON.stringify(curves.map(({ label, tone, smooth }) => [label, tone, smooth !== null]));
    panel.data = joined(drawn);
    panel.curves = curves;
    if (panel.shape === shape) {
      panel.stale = true;
      if (panel.seen) this.refresh(panel);
      return;
    }
    panel.shape = shape;
    panel.stale = false;
    panel.plot?.destroy();
    panel.plot = this.plot(drawn, panel);
  }

  refresh(panel) {
    panel.stale = false;
    panel.plot.setData(panel.data);
  }

  /** The newest values in the legends, by panel and label; curves stay as they are. */
  showLatest(latest) {
    for (const [name, panel] of this.panels) {
      const values = panel.legend.querySelectorAll("b");
      panel.curves.forEach((curve, n) => {
        curve.last = latest[name]?.[curve.label] ?? curve.last;
        if (panel.plot.cursor.idx == null) values[n].textContent = short(curve.last, 3);
      });
    }
  }

  plot(drawn, panel) {
    const series = [{}];
    const shown = [];
    for (const lines of drawn.lines) {
      const sparse = lines.x.length < 80;
      for (const curve of lines.curves) {
        const line = { stroke: colour(`tone-${curve.tone}`), width: curve.tone === "quiet" ? 1.25 : 1.75, spanGaps: true };
        line.points = { show: sparse && curve.tone === "heldout", size: 5, fill: line.stroke };
        if (curve.smooth) series.push({ ...line, width: 1, alpha: FAINT, points: { show: false } });
        series.push(line);
        shown.push(series.length - 1);
      }
    }
    const axis = { stroke: colour("muted"), font: "11px system-ui, sans-serif", ticks: { show: false }, gap: 4 };
    const grid = { stroke: colour("line"), width: 1 };
    return new uPlot({
      width: panel.box.clientWidth || 320, height: HEIGHT, series, legend: { show: false },
      padding: [6, 14, 0, 0],
      scales: { x: { time: false }, y: { range: (_plot, low, high) => range(low, high, drawn.from_zero) } },
      axes: [
        { ...axis, grid: { show: false }, size: 22, values: (_plot, ticks) => ticks.map((tick) => tickText(tick)), space: 70, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
        { ...axis, grid, size: 40, space: 34, values: (_plot, ticks) => ticks.map((tick) => tickText(tick)) },
      ],
      cursor: { sync: { key: this.sync.key }, points: { size: 6 }, drag: { x: true, y: false, setScale: false } },
      select: { show: true },
      hooks: {
        setCursor: [(plot) => {
          const values = panel.legend.querySelectorAll("b");
          shown.forEach((index, n) => {
            values[n].textContent = short(plot.cursor.idx == null ? panel.curves[n].last : near(plot.data, index, plot.cursor.idx), 3);
          });
        }],
        setSelect: [(plot) => {
          const { left, width } = plot.select;
          if (width < 4) return;
          const [low, high] = [left, left + width].map((place) => Math.round(plot.posToVal(place, "x")));
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          if (high > low) this.onrange(low, high);
        }],
      },
    }, panel.data, panel.box);
  }

  drop(name, panel) {
    panel.plot?.destroy();
    this.watch.unobserve(panel.box);
    this.sight.unobserve(panel.box);
    panel.card.remove();
    this.panels.delete(name);
  }

  end() {
    removeEventListener("tempsamp-theme", this.repaint);
    for (const [name, panel] of this.panels) this.drop(name, panel);
    this.watch.disconnect();
    this.sight.disconnect();
  }
}

/** All curves of a panel over all their places. */
function joined(drawn) {
  return uPlot.join(drawn.lines.map((lines) => [
    lines.x, ...lines.curves.flatMap((curve) => (curve.smooth ? [curve.values, curve.smooth] : [curve.values])),
  ]));
}

function range(low, high, fromZero) {
  if (low === null || high === null) return [0, 1];
  const [floor, top] = [fromZero && low >= 0 ? 0 : low, high];
  const room = (top - floor || Math.abs(top) || 1) * 0.08;
  return [floor === 0 ? 0 : floor - room, top + room];
}

function tickText(tick) {
  if (Math.abs(tick) >= 1000) return `${Number((tick / 1000).toPrecision(3))}k`;
  return String(Number(tick.toPrecision(3))).replace(/^(-?)0\./, "$1.");
}

/** The value at a place, or the nearest one before it: held-out curves have few points. */
function near(data, index, place) {
  for (let n = place; n >= 0; n -= 1) if (data[index][n] !== null && data[index][n] !== undefined) return data[index][n];
  return null;
}
