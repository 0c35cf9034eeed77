// A clip along its time: frames, truth, and a row for each answer.

import { picture } from "./ask.js";
import { h, s, seconds, short, signed } from "./dom.js";

const STEPS_S = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
const MOST_INTERVALS = 6;
const STRONG = 2;

/** How far an advantage goes towards full colour: 0 to 1. */
export const strength = (advantage) => Math.min(1, Math.abs(advantage ?? 0) / STRONG);

/** Class and strength of an answer's colour. */
export function tint(answer) {
  const kind = answer.advantage === null ? "none" : answer.advantage > 0 ? "up" : answer.advantage < 0 ? "down" : "zero";
  return { kind, style: { "--strength": strength(answer.advantage).toFixed(2) } };
}

/** A group's answers, those that earned most first; without a verdict last. */
export const ranked = (answers) => [...answers].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || a.number - b.number);

/** The whole timeline of a group; `onanswer(number)` when a row is chosen. */
export function timeline(group, { strip, onanswer }) {
  const length = group.duration_s;
  return h("div", { class: "timeline" },
    h("div", { class: "trow film" }, h("span", { class: "who" }, "clip"), strip, h("span", { class: "figures" })),
    h("div", { class: "trow axis", "aria-hidden": "true" }, h("span", { class: "who" }),
      h("div", { class: "ticks" }, ticks(length).map((time) => h("span", { class: time > 0.96 * length && "end", style: { left: `${100 * time / length}%` } }, clock(time, length)))),
      h("span", { class: "figures" }, h("span", {}, "reward"), h("span", {}, "adv."))),
    h("div", { class: "trow truth" }, h("span", { class: "who" }, "truth"),
      track(group, group.truth, group.truth_marks_s, { kind: "truth" }, words(group.truth, group.truth_marks_s)), h("span", { class: "figures" })),
    h("ol", { class: "answers", "aria-label": "Answers, those that earned most first" }, ranked(group.answers).map((answer) => h("li", {},
      h("button", { type: "button", class: `trow answer ${answer.is_injected ? "injected" : ""}`, onclick: () => onanswer(answer.number), "aria-label": spoken(answer) },
        h("span", { class: "who" }, answer.is_injected ? "injected" : String(answer.number)),
        track(group, answer.spans, answer.marks_s, tint(answer)),
        h("span", { class: "figures" }, h("span", {}, short(answer.reward)), h("span", { class: tint(answer).kind }, signed(answer.advantage))))))));
}

function track(group, spans, marks, { kind, style = {} }, title = null) {
  const length = group.duration_s;
  const place = (time) => Math.min(Math.max(time / length, 0), 1) * 100;
  const bars = [
    ...spans.map(([start, end]) => h("i", { class: `seg ${kind}`, style: { ...style, left: `${place(start)}%`, width: `${Math.max(place(end) - place(start), 0.5)}%` } })),
    ...marks.map((time) => h("i", { class: `seg point ${kind}`, style: { ...style, left: `${place(time)}%` } })),
  ];
  return h("span", { class: "track", title },
    group.truth.map(([start, end]) => kind !== "truth" && h("i", { class: "shade", style: { left: `${place(start)}%`, width: `${place(end) - place(start)}%` } })),
    bars.length ? bars : h("em", {}, "nothing could be read"));
}

/** The clip's frames; grey until they are there, and a word where they cannot be read. */
export function film(group, signal) {
  const box = h("div", { class: "strip ghost" });
  picture("groups/strip", { run: group.run, step: group.step, prompt: group.prompt_id }, signal).then((url) => {
    box.classList.remove("ghost");
    if (url === null) {
      box.replaceChildren(h("p", {}, "The video is not where the run found it; answers are shown without frames."));
      return;
    }
    const image = h("img", { src: url, alt: `Frames of ${group.video}`, onload: () => URL.revokeObjectURL(url) });
    box.replaceChildren(image);
  }).catch((error) => {
    if (error.name !== "AbortError") box.replaceChildren(h("p", {}, error.message));
  });
  return box;
}

/** Where a group's answers lie between the least and the largest reward of a run. */
export function dots(group, [low, high]) {
  const span = high - low || 1;
  const place = (reward) => 4 + 92 * (reward - low) / span;
  return s("svg", { class: "dots", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("path", { d: "M2 6h96", class: "rail" }),
    group.rewards.map((reward, n) => {
      if (reward === null) return null;
      const injected = group.has_injected && n === group.rewards.length - 1;
      const advantage = group.advantages[n];
      const kind = injected ? "injected" : advantage === null ? "none" : advantage > 0 ? "up" : advantage < 0 ? "down" : "zero";
      return s("rect", { x: place(reward) - 0.9, width: 1.8, y: injected ? 0.5 : 2, height: injected ? 11 : 8, class: kind });
    }));
}

export function words(spans, marks = []) {
  if (marks.length) return marks.map((time) => seconds(time)).join(", ");
  return spans.map(([start, end]) => `${start.toFixed(1)} to ${end.toFixed(1)} s`).join(", ") || "nothing";
}

function spoken(answer) {
  const who = answer.is_injected ? "Injected truth" : `Answer ${answer.number}`;
  return `${who}: ${words(answer.spans, answer.marks_s)}, reward ${short(answer.reward)}, advantage ${signed(answer.advantage)}`;
}

export function ticks(length) {
  const step = STEPS_S.find((candidate) => length / candidate <= MOST_INTERVALS) ?? STEPS_S.at(-1);
  return Array.from({ length: Math.floor(length / step + 1e-9) + 1 }, (_, n) => n * step);
}

export function clock(time, length) {
  if (length >= 120) return `${Math.floor(time / 60)}:${String(Math.round(time % 60)).padStart(2, "0")}`;
  return time === 0 ? "0" : `${Number(time.toFixed(1))} s`;
}
