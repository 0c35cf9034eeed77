// Elements without markup: every text, wherever it comes from, becomes a text node.

/** An element: attributes (on* are listeners, style an object), then children or texts. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for drawings. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Everything in an element anew; what is null or false is left out, as in `h`. */
export function fill(element, ...children) {
  element.replaceChildren();
  return filled(element, {}, children);
}

/** `.41` for figures between -1 and 1, else three digits. */
export function short(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) < 1) return value.toFixed(digits).replace(/^(-?)0\./, "$1.");
  if (Math.abs(value) >= 10000) return Math.round(value).toLocaleString("en");
  return Number(value.toPrecision(3)).toString();
}

/** `+.53`, `−.20`: signs that line up. */
export function signed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const text = Math.abs(value).toFixed(digits).replace(/^0\./, ".");
  return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
}

/** `40 s`, `12 min`, `3 h`: as commands say it (jobs/local/terminal.py). */
export function duration(value) {
  const [unit, size] = [["days", 86_400], ["h", 3600], ["min", 60]].find(([, one]) => value >= 2 * one) || ["s", 1];
  return `${Math.round(value / size)} ${unit}`;
}

export const seconds = (value) => `${Number(value.toFixed(value < 100 ? 1 : 0))} s`;

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** What stands where nothing is: a title, a sentence, maybe a way on. */
export function empty(title, text, ...more) {
  return h("div", { class: "state" },
    s("svg", { viewBox: "0 0 48 28", width: 72, height: 42, "aria-hidden": "true" },
      s("path", { d: "M2 6h44", class: "rail" }), s("path", { d: "M12 14h20", class: "rail" }), s("path", { d: "M8 22h14", class: "rail" })),
    h("h2", {}, title), h("p", {}, text), ...more);
}

/** What went wrong, and a button that tries again. */
export function failed(error, retry) {
  return h("div", { class: "state fault", role: "alert" },
    h("h2", {}, "That did not work"), h("p", {}, error.message),
    retry && h("button", { type: "button", class: "plain", onclick: retry }, "Try again"));
}

/** Grey shapes where something is about to be. */
export function loading(label, count = 3) {
  return h("div", { class: "loading", role: "status", "aria-label": label },
    Array.from({ length: count }, () => h("div", { class: "ghost" })));
}

/** A table of texts; `numeric` columns stand at their right. */
export function table(headings, rows, { numeric = [], caption = null, label = null } = {}) {
  const side = (column) => (numeric[column] ? "number" : null);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption || label || "Table" },
    h("table", {},
      caption && h("caption", {}, caption),
      h("thead", {}, h("tr", {}, headings.map((text, column) => h("th", { scope: "col", class: side(column) }, text)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, column) => h("td", { class: side(column) }, cell)))))));
}
