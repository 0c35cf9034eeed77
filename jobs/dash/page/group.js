// One group in full, or two beside each other on the same query.

import { ask } from "./ask.js";
import { failed, fill, h, loading, plural, short, signed } from "./dom.js";
import { film, ranked, timeline, tint, words } from "./timeline.js";

export class Group {
  constructor(app, place, other) {
    this.app = app;
    this.place = place;
    this.other = other;
    this.stopped = new AbortController();
    this.element = h("div", { class: "pages" }, loading("The group is read", 4));
  }

  async load() {
    const { signal } = this.stopped;
    try {
      const [group, other, same] = await Promise.all([
        ask("groups/one", this.place, signal),
        this.other ? ask("groups/one", this.other, signal) : null,
        ask("groups/same", this.place, signal),
      ]);
      this.show(group, other, same.places);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.app.refused(error) || fill(this.element, this.back(), failed(error, () => this.load()));
    }
  }

  show(group, other, places) {
    this.element.classList.toggle("two", other !== null);
    fill(this.element,
      this.back(),
      h("header", { class: "asked" }, h("h1", {}, h("q", {}, group.query)),
        h("p", { class: "meta" }, [group.video, length(group), `row ${group.row_id}`, group.mode === "think" ? "asked to think" : "asked for the answer"].map((text) => h("span", {}, text))),
        h("a", { class: "onward", href: this.app.address("playground", { video: group.path, query: group.query, mode: group.mode === "think" ? "think" : null, start_s: group.window_s?.[0], end_s: group.window_s?.[1] }) }, "Ask about this video")),
      this.beside(group, other, places),
      h("div", { class: "columns" }, this.page(group, other !== null), other && this.page(other, true)));
  }

  page(group, named) {
    const answers = new Map(group.answers.map((answer) => [answer.number, this.answer(answer, group)]));
    const open = (number) => {
      const details = answers.get(number);
      details.open = true;
      details.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
      details.querySelector("summary").focus({ preventScroll: true });
    };
    return h("article", { class: "group", "aria-label": `Step ${group.step} of ${group.run}` },
      h("p", { class: "lead" }, named && h("b", {}, `${group.run}, step ${group.step}. `), group.beats),
      h("div", { class: "card" }, timeline(group, { strip: film(group, this.stopped.signal), onanswer: open }), this.legend()),
      h("dl", { class: "facts" },
        fact("step", `${group.step}, epoch ${group.epoch}`), fact("strategy", group.strategy), fact("replica", h("code", {}, group.replica)),
        fact("prompt", `${plural(group.prompt_tokens, "token")}, ${plural(group.num_frames, "frame")}`),
        fact("time", `${short(group.seconds.decode_s)} s decoding, ${short(group.seconds.generate_s)} s answering, ${short(group.seconds.score_s)} s scoring`)),
      h("section", { class: "said", "aria-label": "Answers" }, ranked(group.answers).map((answer) => answers.get(answer.number))));
  }

  legend() {
    return h("ul", { class: "legend", "aria-label": "Colours" },
      h("li", {}, h("i", { class: "key truth" }), "truth"), h("li", {}, h("i", { class: "key up" }), "made more likely"),
      h("li", {}, h("i", { class: "key down" }), "made less likely"), h("li", {}, h("i", { class: "key none" }), "moved nothing"),
      h("li", {}, h("i", { class: "key injected" }), "injected"));
  }

  answer(answer, group) {
    const { kind } = tint(answer);
    const parts = Object.entries(answer.parts);
    return h("details", { class: `card answer ${answer.is_injected ? "injected" : ""}` },
      h("summary", {}, h("b", {}, answer.is_injected ? "Injected truth" : `Answer ${answer.number}`),
        h("span", { class: "spans" }, words(answer.spans, answer.marks_s)),
        h("span", { class: "figures" }, h("span", {}, short(answer.reward)), h("span", { class: kind }, signed(answer.advantage)))),
      h("div", { class: "tokens", role: "group", "aria-label": "Text" }, tokens(answer)),
      h("p", { class: "note" }, likelihood(answer)),
      h("p", { class: "fate" }, answer.fate),
      h("dl", { class: "facts" }, fact("reward", short(answer.reward, 3)), parts.map(([name, value]) => fact(name.replaceAll("_", " "), short(value, 3))),
        fact("advantage", signed(answer.advantage, 3)), fact("tokens", String(answer.tokens.length)), fact("ended by", answer.finish_reason === "stop" ? "its stop token" : answer.finish_reason),
        answer.lag !== null && fact("sampled", answer.lag === 0 ? "by the policy it trained" : `${plural(answer.lag, "version")} before`)));
  }

  beside(group, other, places) {
    const others = places.filter((place) => place.run !== group.run || place.step !== group.step || place.prompt_id !== group.prompt_id);
    if (!others.length && !other) return h("p", { class: "note" }, "This query was answered in no other kept step or run.");
    const here = this.app.address("groups", { step: group.step, prompt: group.prompt_id });
    const chosen = other && `${other.run}\n${other.step}\n${other.prompt_id}`;
    const select = h("select", { onchange: (event) => {
      const place = others[Number(event.target.value)];
      location.hash = place ? this.app.address("groups", { step: group.step, prompt: group.prompt_id, with_run: place.run, with_step: place.step, with_prompt: place.prompt_id }) : here;
    } }, h("option", { value: "" }, "nothing"), others.map((place, n) => h("option", { value: n, selected: `${place.run}\n${place.step}\n${place.prompt_id}` === chosen },
      `${place.run === group.run ? "" : `${place.run}, `}step ${place.step}, mean reward ${short(place.mean_reward)}`)));
    return h("label", { class: "beside" }, h("span", {}, "Beside it"), select);
  }

  back() {
    const { step, prompt, ...rest } = Object.fromEntries(this.app.parameters);
    for (const name of Object.keys(rest)) if (name.startsWith("with_")) delete rest[name];
    return h("a", { class: "back", href: this.app.address("groups", rest) }, "All groups");
  }

  end() {
    this.stopped.abort();
  }
}

const length = ({ window_s, duration_s }) => `${short(duration_s)} s${window_s ? ` from ${short(window_s[0])} s on` : ""}`;

export const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

/** Each token on a ground the darker the less likely it was. */
export function tokens(answer) {
  return answer.tokens.map(({ text, logprob }) => h("span", {
    style: logprob === null ? {} : { "--surprise": Math.min(1, -logprob / 4).toFixed(2) },
    class: logprob === null ? "" : "token", title: logprob === null ? null : `p ${short(Math.exp(logprob), 3)}, ${logprob.toFixed(2)} nats`,
  }, text));
}

export function likelihood(answer) {
  const known = answer.tokens.filter(({ logprob }) => logprob !== null);
  if (!known.length) return "Written from the row: nobody sampled it, so it has no log-probabilities of an engine.";
  const least = known.reduce((a, b) => (b.logprob < a.logprob ? b : a));
  const total = known.reduce((sum, { logprob }) => sum + logprob, 0);
  return [`Log-probability ${total.toFixed(2)} nats, ${(total / known.length).toFixed(2)} a token; least likely `, h("code", {}, JSON.stringify(least.text)), ` with p ${short(Math.exp(least.logprob), 3)}.`];
}
