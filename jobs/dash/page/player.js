// A video with what was found below it: frames, a row of spans each, the place that is shown.

import { picture } from "./ask.js";
import { fill, h, plural, seconds } from "./dom.js";
import { clock, ticks } from "./timeline.js";

const LEAST_LOOP_S = 0.1;
const BLINK_S = 0.04;

export class Player {
  constructor({ onloop }) {
    this.onloop = onloop;
    this.video = h("video", { controls: true, playsinline: true, preload: "metadata" });
    this.note = h("p", { class: "note", role: "status" });
    this.film = h("div", { class: "strip ghost" });
    this.ticks = h("div", { class: "ticks" });
    this.lanes = h("ol", { class: "lanes", "aria-label": "Spans" });
    this.here = h("i", { class: "playhead", "aria-hidden": "true" });
    this.rail = h("div", { class: "timeline lanes-of" },
      h("div", { class: "trow film" }, h("span", { class: "who" }, "clip"), this.film, h("span", { class: "figures" })),
      h("div", { class: "trow axis", "aria-hidden": "true" }, h("span", { class: "who" }), this.ticks, h("span", { class: "figures" }, "conf.")),
      this.lanes, h("div", { class: "trow over", "aria-hidden": "true" }, h("span", {}), h("span", { class: "place" }, this.here), h("span", {})));
    this.element = h("div", { class: "player" }, this.video, this.note, this.rail);
    this.looped = null;
    for (const name of ["play", "seeked", "loadedmetadata"]) this.video.addEventListener(name, () => this.tick());
    this.video.addEventListener("ended", () => this.looped && this.again());
    this.video.addEventListener("error", () => this.video.getAttribute("src") && this.unplayable());
    this.film.addEventListener("click", (event) => this.at((event.clientX - this.film.getBoundingClientRect().left) / this.film.clientWidth * this.length));
  }

  /** Show a clip, from `url`. */
  open(clip, url, signal) {
    this.length = clip.duration_s;
    this.stop();
    this.note.textContent = "";
    this.video.setAttribute("aria-label", `Video ${clip.name}`);
    this.video.src = url;
    fill(this.lanes);
    fill(this.ticks, ticks(this.length).map((time) => h("span", { class: time > 0.96 * this.length && "end", style: { left: `${100 * time / this.length}%` } }, clock(time, this.length))));
    this.film.classList.add("ghost");
    fill(this.film);
    picture("playground/strip", { clip: clip.clip }, signal).then((strip) => {
      this.film.classList.remove("ghost");
      fill(this.film, strip === null ? h("p", {}, "No frames could be read along it.") : h("img", { src: strip, alt: `Frames of ${clip.name}`, onload: () => URL.revokeObjectURL(strip) }));
    }).catch((error) => error.name === "AbortError" || fill(this.film, h("p", {}, error.message)));
  }

  /** Rows of {label, spans, kind, strength, figure}; choosing one jumps to its first span. */
  show(rows) {
    const place = (time) => Math.min(Math.max(time / this.length, 0), 1) * 100;
    fill(this.lanes, rows.map((row) => h("li", {}, h("button", {
      type: "button", class: "trow lane", "aria-label": `Jump to ${row.label}: ${said(row.spans)}, confidence ${row.figure}`, onclick: () => this.jump(row.spans[0]),
    }, h("span", { class: "who" }, row.label),
    h("span", { class: "track" }, row.spans.map(([start, end]) => h("i", { class: `seg ${row.kind}`, style: { left: `${place(start)}%`, width: `${Math.max(place(end) - place(start), 0.5)}%`, "--strength": row.strength.toFixed(2) } }))),
    h("span", { class: "figures" }, row.figure)))));
  }

  /** To the start of a span, and play. */
  jump([start]) {
    this.stop();
    this.at(start);
    this.play();
  }

  /** Play a span again and again; the same one once more: no longer. */
  loop(span) {
    const same = this.looped === span;
    this.stop();
    if (same) return;
    this.looped = span;
    this.onloop(span);
    this.again();
  }

  /** Nothing is looped from now on. */
  stop() {
    this.looped = null;
    this.onloop(null);
  }

  again() {
    this.at(this.looped[0]);
    this.play();
  }

  at(time) {
    this.video.currentTime = Math.min(Math.max(time, 0), Math.max(0, this.length - BLINK_S));
    this.element.scrollIntoView({ block: "nearest" });
  }

  play() {
    this.video.play().catch(() => {});  // the browser says so itself where it cannot
  }

  tick() {
    cancelAnimationFrame(this.frame);
    const now = this.video.currentTime;
    this.here.style.setProperty("left", `${100 * now / (this.length || 1)}%`);
    if (this.looped && !this.video.paused && !this.video.seeking) {
      const [start, end] = this.looped;
      if (now >= Math.max(end, start + LEAST_LOOP_S) || now < start - LEAST_LOOP_S) this.video.currentTime = start;
    }
    if (!this.video.paused) this.frame = requestAnimationFrame(() => this.tick());
  }

  unplayable() {
    this.note.textContent = "This browser cannot play it. Questions, spans and exports work all the same.";
  }

  end() {
    cancelAnimationFrame(this.frame);
    this.looped = null;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }
}

/** `4.50 to 7.00 s`, as `tempsamp ground` writes spans. */
export const said = (spans) => `${spans.map(([start, end]) => `${start.toFixed(2)} to ${end.toFixed(2)}`).join(", ")} s`;

/** `my trip.mp4`, `16 s`, `64 x 48`. */
export const facts = (clip) => [clip.name, seconds(clip.duration_s), `${clip.width_px} x ${clip.height_px}`];

export const megabytes = (bytes) => plural(Math.max(1, Math.round(bytes / 1e6)), "MB", "MB");
