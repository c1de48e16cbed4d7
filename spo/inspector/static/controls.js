// "What if": sliders and switches for the credit settings, folded into one line, and what changed
// against training.

import { h, show } from "./dom.js";

// Most of the interesting entropy_percentiles are small: the slider moves their square root.
const SLIDERS = { entropy_percentile: "entropy_percentile", gamma: "γ", lam: "λ" };
const toSlider = (name, x) => (name === "entropy_percentile" ? Math.sqrt(x) : x);
const fromSlider = (name, x) => (name === "entropy_percentile" ? x * x : x);
const MODES = {
  spo: ["SPO", "Segment GAE, cut at entropy_percentile"],
  ppo: ["PPO", "Token GAE: every token is a segment"],
  grpo: ["GRPO", "Group-relative reward on every token, no critic"],
};
const LEVELS = { segment: ["segment", ""], token: ["token", ""] };

export class Controls {
  /** @param onChange called with the changed settings, {mode}, or null to return to training */
  constructor(onChange) {
    this.onChange = onChange;
    this.sliders = {};
    this.modes = {};
    this.levels = {};
    const normalise = (event) => onChange({ normalize_advantages: event.target.checked });
    this.normalise = h("input", { type: "checkbox", id: "spo-normalise", onchange: normalise });
    this.reset = h("button", { class: "reset", onclick: () => onChange(null) }, "Reset to training");
    this.line = h("span", { class: "settings" });
    this.status = h("span", { class: "status", role: "status" });
    this.element = h(
      "details",
      { class: "controls", "aria-label": "What if" },
      h("summary", {}, h("b", {}, "What if"), this.line, this.status),
      h(
        "div",
        { class: "row" },
        this.choice("mode", MODES, this.modes),
        Object.keys(SLIDERS).map((name) => this.sliderRow(name)),
        h("span", { class: "caption" }, "advantage per"),
        this.choice("advantage_level", LEVELS, this.levels),
        h("label", { for: "spo-normalise" }, this.normalise, " normalise"),
        this.reset,
      ),
    );
  }

  sliderRow(name) {
    const id = `spo-${name}`;
    const range = { type: "range", min: 0, max: 1, step: 0.001, "aria-label": SLIDERS[name] };
    const slider = h("input", range);
    const field = h("input", { type: "number", id, min: 0, max: 1, step: "any" });
    slider.addEventListener("input", () => {
      field.value = Number(fromSlider(name, Number(slider.value)).toFixed(4));
      this.onChange({ [name]: Number(field.value) });
    });
    field.addEventListener("input", () => {
      const value = Number(field.value);
      if (field.value === "" || !(value >= 0 && value <= 1)) return;
      slider.value = toSlider(name, value);
      this.onChange({ [name]: value });
    });
    this.sliders[name] = { slider, field };
    return h("div", { class: "slider" }, h("label", { for: id }, SLIDERS[name]), slider, field);
  }

  /** A row of buttons of which one is pressed. */
  choice(name, options, buttons) {
    for (const [value, [label, title]] of Object.entries(options)) {
      const onclick = () => this.onChange({ [name]: value });
      buttons[value] = h("button", { title: title || null, onclick }, label);
    }
    return h("div", { class: "choice" }, Object.values(buttons));
  }

  /** Shows settings; `can` says what the step allows: {critic, recompute}. */
  set(mode, settings, changed, can) {
    this.element.hidden = !can.recompute;
    if (!can.recompute) return;
    if (changed) this.element.open = true;
    const fixed = !can.critic || mode === "grpo";
    for (const [name, { slider, field }] of Object.entries(this.sliders)) {
      const isCut = name === "entropy_percentile";
      const shown = (isCut ? { ppo: 1, grpo: 0 }[mode] : undefined) ?? settings[name];
      if (document.activeElement !== field) field.value = shown;
      if (document.activeElement !== slider) slider.value = toSlider(name, shown);
      slider.disabled = field.disabled = isCut ? mode !== "spo" : fixed;
    }
    const press = (buttons, current, disabled) => {
      for (const [value, button] of Object.entries(buttons)) {
        button.setAttribute("aria-pressed", String(value === current));
        button.disabled = disabled(value);
      }
    };
    press(this.modes, mode, (value) => value === "ppo" && !can.critic);
    press(this.levels, settings.advantage_level, () => fixed);
    this.normalise.checked = settings.normalize_advantages;
    this.normalise.disabled = fixed;
    this.reset.disabled = !changed;
    const { entropy_percentile: p, gamma, lam } = settings;
    this.line.textContent = `${MODES[mode]?.[0] ?? "SPO"} · p ${show(p)} · γ ${show(gamma)} · λ ${show(lam)}`;
  }

  say(...nodes) {
    this.status.replaceChildren(...nodes);
  }
}

/** Boundaries and advantages of some completions against training. */
export function compareWithTraining(completions, creditOf) {
  const sum = { split: 0, merged: 0, flipped: 0, tokens: 0, change: 0 };
  for (const completion of completions) {
    const { saved, length } = completion;
    const credit = creditOf(completion);
    for (let at = 0; at < length; at++) {
      const was = at > 0 && saved.segmentIds[at] !== saved.segmentIds[at - 1];
      const is = at > 0 && credit.segmentIds[at] !== credit.segmentIds[at - 1];
      if (is && !was) sum.split++;
      if (was && !is) sum.merged++;
      if (saved.advantages[at] * credit.advantages[at] < 0) sum.flipped++;
      sum.change += Math.abs(credit.advantages[at] - saved.advantages[at]);
    }
    sum.tokens += length;
  }
  return sum;
}

/** The comparison as a line of text; `check` is Python's word on it. */
export function changeLine(change, check) {
  const mean = change.tokens ? change.change / change.tokens : 0;
  return [
    h("span", { class: "key split" }, `${change.split} split`),
    h("span", { class: "key merged" }, `${change.merged} merged`),
    h("span", { class: "key flip" }, `${change.flipped} sign flips`),
    h("span", {}, `mean |ΔA| ${show(mean)}, total ${show(change.change)}`),
    h("span", { class: `check ${check.state}` }, check.text),
  ];
}
