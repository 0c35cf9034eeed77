// Ask one or two models when something happens in a video; see, loop and export what they say.

import { ask, send, stream, tell } from "./ask.js";
import { empty, failed, fill, h, loading, plural, short } from "./dom.js";
import { fact, likelihood, tokens } from "./group.js";
import { facts, megabytes, Player, said } from "./player.js";

const FIELDS = ["query", "mode", "samples", "start_s", "end_s", "seed", "max_tokens", "model", "beside"];
const TOO_LONG = /max_clip_pixels|max_clip_frames|max_prompt_tokens|context.{0,10}length/;
const KINDS = ["first", "second"];
const TYPING_MS = 250;
const SECOND_MS = 1000;

export class Playground {
  constructor(app, parameters) {
    this.app = app;
    this.clip = null;
    this.wanted = parameters.get("video");
    this.stopped = new AbortController();
    this.player = new Player({ onloop: (span) => this.mark(span) });
    this.stage = h("section", { class: "stage card", "aria-label": "Video" });
    this.state = h("div", { class: "asking", role: "status" });
    this.results = h("div", { class: "results" });
    this.models = [];
    this.element = h("div", { class: "playground" },
      h("h1", { class: "hidden" }, "Playground"), this.stage, this.form(parameters), this.results);
    fill(this.stage, loading("Models are looked for", 2));
    // Anywhere: a browser leaves the page for a file that is dropped beside it.
    const { signal } = this.stopped;
    addEventListener("dragover", (event) => this.over(event, true), { signal });
    addEventListener("dragleave", (event) => this.over(event, false), { signal });
    addEventListener("drop", (event) => this.drop(event), { signal });
  }

  form(parameters) {
    const value = (name, otherwise = "") => parameters.get(name) ?? otherwise;
    const note = () => this.app.note(this.said(), FIELDS);
    const field = (name, label, type, otherwise, more = {}) => h("label", {}, h("span", {}, label),
      h("input", { type, name, value: value(name, otherwise), oninput: note, autocomplete: "off", ...more }));
    const mode = value("mode", "answer");
    this.ask = h("button", { type: "submit", class: "primary" }, "Ask");
    this.cancel = h("button", { type: "button", class: "plain", hidden: true, onclick: () => this.stop() }, "Cancel");
    this.problem = h("p", { class: "problem", id: "problem", role: "alert" });
    this.fields = h("form", { class: "question card", "aria-label": "Question", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.submit(); } },
      field("query", "When does it happen?", "text", "", { placeholder: "a dog jumps into the water" }),
      h("div", { class: "choices" },
        h("div", { class: "segments", role: "group", "aria-label": "How it answers" }, [["answer", "Answer"], ["think", "Think"]].map(([kind, label]) => h("button", {
          type: "button", data: { mode: kind }, "aria-pressed": String(kind === mode), onclick: (event) => { this.press(event.currentTarget); note(); },
        }, label))),
        field("samples", "Samples", "number", "1", { min: 1, inputmode: "numeric" })),
      this.model = h("label", {}, h("span", {}, "Ask"), h("select", { name: "model", onchange: (event) => { this.chosen.model = event.target.value; this.fillBeside(); note(); } })),
      this.beside = h("label", { hidden: true }, h("span", {}, "Beside it"), h("select", { name: "beside", onchange: (event) => { this.chosen.beside = event.target.value; note(); } })),
      h("details", { class: "more" }, h("summary", {}, h("b", {}, "More")), h("div", { class: "choices" },
        field("start_s", "From, s", "number", "", { min: 0, step: "any", placeholder: "its start" }), field("end_s", "To, s", "number", "", { min: 0, step: "any", placeholder: "its end" }),
        field("seed", "Seed", "number", "0", { min: 0 }), field("max_tokens", "Longest answer, tokens", "number", "", { min: 1, placeholder: "the model's" }))),
      this.problem, h("div", { class: "choices" }, this.ask, this.cancel), this.state);
    this.chosen = { model: value("model"), beside: value("beside") };
    return this.fields;
  }

  /** What runs as models is asked again whenever the run grows; a video and its answers stay. */
  async load(signal) {
    try {
      this.offer = await ask("playground", { run: this.app.run }, signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.refused(error) || (this.clip === null && fill(this.stage, failed(error, () => this.load(signal))));
      return;
    }
    const keys = (models) => models.map(({ key }) => key).join();
    const changed = keys(this.offer.models) !== keys(this.models);
    this.models = this.offer.models;
    if (changed) this.fillModels();
    else this.rename();
    if (this.wanted) await this.choose(this.wanted);
    else if (!this.clip && !this.stage.querySelector(".drop, .coming")) this.showDrop();
    this.ready();
  }

  on(name) {
    if (name === "fleet") this.load(this.stopped.signal);
  }

  /** What was chosen stays so, also while it is away. */
  fillModels() {
    fill(this.model.lastChild, this.models.map(({ key, name }) => h("option", { value: key, selected: key === this.chosen.model }, name)));
    this.fillBeside();
  }

  fillBeside() {
    const others = this.models.filter(({ key }) => key !== this.model.lastChild.value);
    this.beside.hidden = others.length === 0;
    fill(this.beside.lastChild, h("option", { value: "" }, "nothing"), others.map(({ key, name }) => h("option", { value: key, selected: key === this.chosen.beside }, name)));
  }

  /** A run's replica has new weights: an open list stays open. */
  rename() {
    for (const option of this.fields.querySelectorAll("select option")) if (option.value) option.textContent = this.nameOf(option.value);
  }

  /** Where a video is dropped or chosen; and what is missing, if nobody can be asked. */
  showDrop(problem = null) {
    const input = h("input", { type: "file", accept: "video/*", id: "file", class: "hidden", onchange: () => input.files[0] && this.upload(input.files[0]) });
    fill(this.stage, h("div", { class: "drop" },
      problem && h("p", { class: "problem", role: "alert" }, problem),
      h("p", { class: "big" }, "Drop a video here"), h("p", {}, "or ", input, h("label", { for: "file", class: "plain" }, "choose a file"), ` of up to ${this.offer.most_upload_mb.toLocaleString("en")} MB`),
      this.offer.roots.length > 0 && this.ofRun()));
    fill(this.results, this.models.length === 0 && h("section", { class: "card", "aria-label": "Nobody to ask" },
      empty("Nobody to ask yet", "Start the dash with a checkpoint, which is loaded when it is first asked, or with a server that runs; a replica of the run is offered here while one serves.",
        h("code", {}, "tempsamp dash RUN --model FOLDER"), h("code", {}, "tempsamp dash RUN --openai URL --served-model NAME"),
        this.offer.silent && h("p", { class: "note" }, this.offer.silent))));
  }

  ofRun() {
    const names = h("datalist", { id: "videos" });
    const note = h("p", { class: "note", role: "status" });
    const list = async () => {
      const found = await ask("playground/videos", { run: this.app.run, text: field.value }, this.stopped.signal).catch((error) => error);
      if (found.name === "AbortError") return;
      fill(names, (found.names || []).map((name) => h("option", { value: name })));
      note.textContent = found.message || (found.names.length ? `${found.is_all ? "" : "More than "}${plural(found.names.length, "video")} ${field.value ? "fit" : `below ${this.offer.roots.join(", ")}`}` : "No video there");
    };
    let timer = 0;
    const field = h("input", { type: "search", list: "videos", id: "of-run", placeholder: "name", autocomplete: "off", oninput: () => { clearTimeout(timer); timer = setTimeout(list, TYPING_MS); } });
    list();
    return h("form", { class: "of-run", onsubmit: (event) => { event.preventDefault(); this.choose(field.value); } },
      h("label", { for: "of-run" }, "or one of the run's videos"), h("div", {}, field, h("button", { type: "submit", class: "plain" }, "Open")), names, note);
  }

  over(event, is) {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    this.stage.classList.toggle("over", is);
  }

  drop(event) {
    this.over(event, false);
    const [file] = event.dataTransfer.files;
    if (file && this.offer) this.upload(file);
  }

  async upload(file) {
    this.app.note({}, ["video"]);
    const most = this.offer.most_upload_mb;
    if (file.size > most * 1e6) {
      this.close();
      this.showDrop(`video: found ${Math.ceil(file.size / 1e6).toLocaleString("en")} MB, wanted at most ${most.toLocaleString("en")} MB: --max-upload-mb`);
      return;
    }
    const bar = h("progress", { max: 1, value: 0, "aria-label": "Upload" });
    const words = h("span", { role: "status" }, `Uploading ${file.name}, ${megabytes(file.size)}`);
    const progress = (share) => {
      bar.value = share;
      if (share >= 1) { bar.removeAttribute("value"); words.textContent = `Reading ${file.name}: a long video takes a while`; }
    };
    await this.take(bar, words, (signal) => send("playground/upload", { name: file.name }, file, { signal, progress }), () => (this.url = URL.createObjectURL(file)));
  }

  async choose(name) {
    this.wanted = null;
    this.app.note({ video: name }, ["video"]);
    const bar = h("progress", { "aria-label": "Reading" });
    await this.take(bar, h("span", { role: "status" }, `Reading ${name}`), (signal) => tell("playground/choose", { run: this.app.run ?? "", name }, signal), (clip) => clip.address);
  }

  /** A clip on its way in, then the player. */
  async take(bar, words, bring, urlOf) {
    this.close();
    const coming = this.coming = new AbortController();
    fill(this.stage, h("div", { class: "coming" }, bar, words, h("button", { type: "button", class: "plain", onclick: () => coming.abort() }, "Cancel")));
    this.ready();
    try {
      const clip = await bring(coming.signal);
      if (this.coming !== coming) return;
      this.clip = clip;
      this.showClip(urlOf(clip));
    } catch (error) {
      if (this.coming !== coming || this.stopped.signal.aborted) return;
      this.app.refused(error) || this.showDrop(error.name === "AbortError" ? null : error.message);
      this.stage.querySelector("input")?.focus();
    }
    this.ready();
  }

  showClip(url) {
    fill(this.stage, h("div", { class: "head" }, h("p", { class: "meta" }, facts(this.clip).map((text) => h("span", {}, text))),
      h("button", { type: "button", class: "plain", onclick: () => { this.app.note({}, ["video"]); this.close(); this.showDrop(); this.stage.querySelector("input").focus(); } }, "Another video")), this.player.element);
    this.player.open(this.clip, url, this.stopped.signal);
    this.fields.elements.query.focus({ preventScroll: true });
  }

  /** No clip, no question about it. */
  close() {
    this.stop();
    this.coming?.abort();
    this.coming = null;
    this.player.end();
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = this.clip = null;
    for (const box of [this.results, this.state, this.problem]) fill(box);
  }

  press(button) {
    for (const other of this.fields.querySelectorAll("[data-mode]")) other.setAttribute("aria-pressed", String(other === button));
  }

  /** What the form says, as the address keeps it. */
  said() {
    const found = Object.fromEntries(new FormData(this.fields));
    found.mode = this.fields.querySelector('[data-mode][aria-pressed="true"]').dataset.mode;
    const usual = { mode: "answer", samples: "1", seed: "0", model: this.models[0]?.key };
    return Object.fromEntries(FIELDS.map((name) => [name, found[name]]).filter(([name, value]) => value && value !== usual[name]));
  }

  ready() {
    this.ask.disabled = !this.clip || !this.models.length || Boolean(this.asked);
    this.cancel.hidden = !this.asked;
  }

  async submit() {
    if (this.ask.disabled) return;
    const { query, samples = "1", seed = "0", max_tokens, start_s, end_s, model, beside, mode } = { ...Object.fromEntries(new FormData(this.fields)), ...this.said() };
    const names = [model ?? this.model.lastChild.value, beside].filter(Boolean);
    const number = (text) => (text === "" ? 0 : Number(text));
    const question = { run: this.app.run ?? "", clip: this.clip.clip, query, mode: mode ?? "answer", samples: number(samples), seed: number(seed), max_tokens: max_tokens ? number(max_tokens) : null, start_s: number(start_s), end_s: end_s ? number(end_s) : null, models: names };
    const asked = this.asked = new AbortController();
    this.query = query;
    this.found = [];
    this.waits = new Map(names.map((key) => [key, { says: "asking", since: Date.now() }]));
    this.failures = [];
    this.complain("", []);
    fill(this.results);
    this.player.show([]);
    this.ready();
    this.cancel.focus();
    this.clock = setInterval(() => this.showWaits(), SECOND_MS);
    this.showWaits();
    try {
      await stream("playground/ask", question, { signal: asked.signal, on: (name, content) => this.hear(name, content, names) });
      if (this.asked === asked && this.found.length + this.failures.length < names.length) throw new Error("The dash ended before the answer came. Is tempsamp dash still running?");
    } catch (error) {
      if (this.asked !== asked || error.name === "AbortError") return;
      this.settle();
      this.app.refused(error) || this.complain(error.message, error.fields || []);
      return;
    }
    if (this.asked === asked) this.settle();
  }

  hear(name, content, names) {
    if (name === "waits") this.waits.get(content.model).says = content.says;
    if (name === "found") this.found.push(content);
    if (name === "failed") this.failures.push(content);
    if (name === "found" || name === "failed") {
      this.waits.delete(content.model.key ?? content.model);
      const place = (one) => names.indexOf(one.model.key ?? one.model);
      this.found.sort((a, b) => place(a) - place(b));
      this.show(names);
    }
    this.showWaits();
  }

  nameOf(key) {
    return this.models.find((model) => model.key === key)?.name ?? key;
  }

  /** One line a model that is waited for; seconds are not read out. */
  showWaits() {
    fill(this.state, [...this.waits].map(([key, { says, since }]) => h("div", { class: "wait" }, h("progress", { "aria-label": `Waiting for ${this.nameOf(key)}` }),
      h("p", {}, this.waits.size > 1 && h("b", {}, `${this.nameOf(key)}: `), says, h("span", { "aria-hidden": "true" }, `, ${Math.round((Date.now() - since) / 1000)} s`)))));
  }

  /** Cancelled, or the page is left. */
  stop() {
    this.asked?.abort();
    if (this.asked) this.settle("Cancelled. A model that had begun to load for this question alone is ended.");
  }

  settle(words = "") {
    clearInterval(this.clock);
    const held = document.activeElement === this.cancel;
    this.asked = null;
    this.waits.clear();
    fill(this.state, words && h("p", { class: "note" }, words));
    this.ready();
    if (held) this.ask.focus();
  }

  /** What is wrong with the question, at its field. */
  complain(message, fields) {
    fill(this.problem, message);
    for (const input of this.fields.querySelectorAll("[name]")) {
      const wrong = fields.includes(input.name);
      input.toggleAttribute("aria-invalid", false);
      if (wrong) { input.closest("details")?.setAttribute("open", ""); input.setAttribute("aria-invalid", "true"); input.setAttribute("aria-describedby", "problem"); input.focus(); }
    }
  }

  show(names) {
    const rows = this.found.flatMap((found) => found.grounding.candidates.map((candidate, n) => ({
      label: this.letter(found, names) + (n + 1), spans: candidate.spans, figure: percent(candidate.confidence), kind: KINDS[names.indexOf(found.model.key)], strength: candidate.confidence ?? 0.5,
    })));
    this.player.show(rows);
    this.loops = [];
    fill(this.results,
      h("div", { class: "head" }, h("h2", {}, h("q", {}, this.query)), this.found.length > 0 && h("button", { type: "button", class: "plain", onclick: () => this.exportJson() }, "Export JSON")),
      h("div", { class: `columns ${names.length > 1 ? "two" : ""}` }, names.map((key) => {
        const found = this.found.find((one) => one.model.key === key);
        const failure = this.failures.find((one) => one.model === key);
        return (found && this.answered(found, names)) || (failure && this.failure(failure, names));
      })));
  }

  letter(found, names) {
    return names.length > 1 ? "AB"[names.indexOf(found.model.key)] : "";
  }

  answered(found, names) {
    const { grounding, versions } = found;
    const letter = this.letter(found, names);
    const best = grounding.candidates[0];
    const weights = versions.checkpoint_sha256 ? `checkpoint ${versions.checkpoint_sha256.slice(0, 12)}` : !versions.served_model && `weights ${versions.weights}`;
    return h("section", { class: `model ${KINDS[names.indexOf(found.model.key)]}`, "aria-label": found.model.name },
      h("h3", {}, h("i", { class: "key" }), letter && h("span", {}, letter), found.model.name),
      h("p", { class: "lead", role: "status" }, best ? `${said(best.spans)}, confidence ${percent(best.confidence)}.` : "No answer could be read as a span."),
      h("p", { class: "note" }, best && `Confidence: ${grounding.confidence_is}. `, grounding.num_unreadable > 0 && `${grounding.num_unreadable} of ${plural(grounding.answers.length, "answer")} could not be read. `,
        [plural(found.asked.num_frames, "frame"), `${found.asked.frame_hw[1]} x ${found.asked.frame_hw[0]}`, weights, found.asked.in_words_of === "run" && "asked in the words of its run"].filter(Boolean).join(", ")),
      h("ol", { class: "found", "aria-label": "Spans" }, grounding.candidates.map((candidate, n) => h("li", { class: "card" }, this.candidate(candidate, letter + (n + 1), grounding)))),
      h("section", { class: "said", "aria-label": `Answers of ${found.model.name}` }, grounding.answers.map((answer, n) => this.answer(answer, n))));
  }

  candidate(candidate, label, grounding) {
    const samples = grounding.num_samples ? `${candidate.num_samples} of ${plural(grounding.num_samples, "sample")}, agreement ${short(candidate.agreement)}` : "";
    const remarks = [candidate.is_greedy && grounding.num_samples && "greedy answer", ...candidate.notes].filter(Boolean).join("; ");
    const note = h("p", { class: "note", role: "status" });
    return [h("p", { class: "top" }, h("b", {}, label), h("span", {}, said(candidate.spans)), h("b", { class: "figure" }, percent(candidate.confidence))),
      (samples || remarks) && h("p", { class: "note" }, [samples, remarks].filter(Boolean).join("; ")),
      candidate.spans.map((span) => {
        const which = candidate.spans.length > 1 ? said([span]) : "";
        const name = (verb) => `${verb} ${label}${which && `: ${which}`}`;
        const outside = span[0] >= this.clip.duration_s || span[1] <= 0;
        const loop = h("button", { type: "button", class: "plain", disabled: outside, "aria-pressed": "false", "aria-label": name("Loop"), onclick: () => this.player.loop(span) }, "Loop");
        this.loops.push([span, loop]);
        return h("div", { class: "does" }, which && h("span", {}, which),
          h("button", { type: "button", class: "plain", disabled: outside, "aria-label": name("Jump to"), onclick: () => this.player.jump(span) }, "Jump"), loop,
          h("button", { type: "button", class: "plain", "aria-label": name("Export clip of"), onclick: (event) => this.exportClip(span, note, event.currentTarget) }, "Export clip"));
      }), note];
  }

  mark(span) {
    for (const [of, button] of this.loops || []) button.setAttribute("aria-pressed", String(of === span));
  }

  answer(answer, n) {
    const known = answer.tokens.length > 0;
    const text = h("div", { class: "tokens", role: "group", "aria-label": "Text", tabindex: 0 });
    // Hundreds of answers have hundreds of tokens each: those that are looked at become elements.
    return h("details", { class: "card answer", ontoggle: () => text.firstChild || fill(text, known ? tokens(answer) : answer.text || "(nothing)") },
      h("summary", {}, h("b", {}, answer.is_greedy ? "Greedy answer" : `Sample ${n}`), h("span", { class: "spans" }, answer.spans.length ? said(answer.spans) : "not readable"), h("span", { class: "figure" }, percent(answer.token_probability))),
      text,
      h("p", { class: "note" }, known ? likelihood(answer) : "The server does not say how probable each token was."),
      h("dl", { class: "facts" }, fact("probability of its tokens", percent(answer.token_probability)), fact("tokens", known ? String(answer.tokens.length) : "–"), answer.notes.length > 0 && fact("remarks", answer.notes.join("; "))));
  }

  failure({ model, says }, names) {
    const [line, ...log] = says.split("\n");
    return h("section", { class: "model", "aria-label": this.nameOf(model) }, names.length > 1 && h("h3", {}, this.nameOf(model)),
      h("div", { class: "card fault", role: "alert" }, h("h3", {}, "No answer"), h("p", {}, line), TOO_LONG.test(says) && h("p", { class: "note" }, "Ask about a part of it: From and To, below More."),
        log.length > 0 && h("details", {}, h("summary", {}, h("b", {}, "Its log")), h("pre", { tabindex: 0 }, log.join("\n"))),
        h("button", { type: "button", class: "plain", onclick: () => this.submit() }, "Ask again")));
  }

  async exportClip([start_s, end_s], note, button) {
    button.disabled = true;
    note.textContent = "cutting";
    try {
      const made = await tell("playground/cut", { clip: this.clip.clip, start_s, end_s }, this.stopped.signal);
      note.textContent = `${made.name}: ${made.says}`;
      save(made.address, made.name);
    } catch (error) {
      if (error.name !== "AbortError") this.app.refused(error) || (note.textContent = error.message);
    }
    button.disabled = false;
    button.focus();
  }

  exportJson() {
    const { num_frames, frame_hw, max_tokens, prompt, in_words_of, ...asked } = this.found[0].asked;
    const document_ = { asked, answers: this.found.map(({ model, asked: { num_frames, frame_hw, max_tokens, prompt, in_words_of }, ...rest }) => ({ model: { name: model.name, kind: model.kind }, sees: { num_frames, frame_hw }, prompt, in_words_of, max_tokens, ...rest })), failed: this.failures.map(({ model, says }) => ({ model: this.nameOf(model), says })) };
    const url = URL.createObjectURL(new Blob([JSON.stringify(document_, null, 1)], { type: "application/json" }));
    save(url, `${this.clip.name.replace(/.*\//, "").replace(/\.\w+$/, "")}-answers.json`);
    setTimeout(() => URL.revokeObjectURL(url), SECOND_MS);
  }

  end() {
    this.close();
    this.stopped.abort();
  }
}

const percent = (share) => (share === null ? "unknown" : `${Math.round(100 * share)} %`);

function save(url, name) {
  h("a", { href: url, download: name }).click();
}
