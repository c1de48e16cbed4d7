// "What if": sliders and switches for the credit settings, and what changed against training.

import { h, show } from "./dom.js";

// Most of the interesting entropy_percentiles are small: the slider moves their square root.
const SLIDERS = {
  entropy_percentile: {
    label: "entropy_percentile",
    toSlider: Math.sqrt,
    fromSlider: (x) => x * x,
  },
  gamma: { label: "γ", toSlider: (x) => x, fromSlider: (x) => x },
  lam: { label: "λ", toSlider: (x) => x, fromSlider: (x) => x },
};
const MODES = {
  spo: ["SPO", "Segment GAE, cut at entropy_percentile"],
  ppo: ["PPO", "Token GAE: every token is a segment"],
  grpo: ["GRPO", "Group-relative reward on every token, no critic"],
};

export class Controls {
  /** @param onChange called with the changed settings, or {mode} */
  constructor(onChange) {
    this.sliders = {};
    this.onChange = onChange;
    const rows = Object.keys(SLIDERS).map((name) => this.sliderRow(name));
    this.modes = this.choice("mode", MODES);
    this.level = this.choice("advantage_level", { segment: ["segment", ""], token: ["token", ""] });
    this.normalise = h("input", {
      type: "checkbox",
      id: "spo-normalise",
      onchange: () => onChange({ normalize_advantages: this.normalise.checked }),
    });
    this.reset = h(
      "button",
      { class: "reset", onclick: () => onChange(null) },
      "Reset to training",
    );
    this.status = h("p", { class: "status", role: "status" });
    this.element = h(
      "section",
      { class: "controls", "aria-label": "What if" },
      h("div", { class: "row" }, h("span", { class: "caption" }, "What if"), rows),
      h(
        "div",
        { class: "row" },
        this.modes.element,
        h("span", { class: "caption" }, "advantage per"),
        this.level.element,
        h("label", { for: "spo-normalise" }, this.normalise, " normalise"),
        this.reset,
      ),
      this.status,
    );
  }

  sliderRow(name) {
    const { label, toSlider, fromSlider } = SLIDERS[name];
    const id = `spo-${name}`;
    const slider = h("input", { type: "range", min: 0, max: 1, step: 0.001, "aria-label": label });
    const field = h("input", { type: "number", id, min: 0, max: 1, step: "any" });
    slider.addEventListener("input", () => {
      const value = Number(fromSlider(Number(slider.value)).toFixed(4));
      field.value = value;
      this.onChange({ [name]: value });
    });
    field.addEventListener("input", () => {
      const value = Number(field.value);
      if (field.value === "" || !(value >= 0 && value <= 1)) return;
      slider.value = toSlider(value);
      this.onChange({ [name]: value });
    });
    this.sliders[name] = { slider, field, toSlider };
    return h("div", { class: "slider" }, h("label", { for: id }, label), slider, field);
  }

  /** A row of buttons of which one is pressed. */
  choice(name, options) {
    const buttons = {};
    for (const [value, [label, title]] of Object.entries(options)) {
      buttons[value] = h(
        "button",
        { title, onclick: () => this.onChange({ [name]: value }) },
        label,
      );
    }
    return { buttons, element: h("div", { class: "choice" }, Object.values(buttons)) };
  }

  /** Shows settings; `can` says what the step allows: {critic, recompute}. */
  set(mode, settings, changed, can) {
    this.element.hidden = !can.recompute;
    if (!can.recompute) return;
    for (const [name, { slider, field, toSlider }] of Object.entries(this.sliders)) {
      const shown = { ppo: 1, grpo: 0 }[mode];
      const value = name === "entropy_percentile" && shown !== undefined ? shown : settings[name];
      if (document.activeElement !== field) field.value = value;
      if (document.activeElement !== slider) slider.value = toSlider(value);
      const fixed = name === "entropy_percentile" ? mode !== "spo" : mode === "grpo" || !can.critic;
      slider.disabled = field.disabled = fixed;
    }
    for (const [value, button] of Object.entries(this.modes.buttons)) {
      button.setAttribute("aria-pressed", String(value === mode));
      button.disabled = value === "ppo" && !can.critic;
    }
    for (const [value, button] of Object.entries(this.level.buttons)) {
      button.setAttribute("aria-pressed", String(value === settings.advantage_level));
      button.disabled = !can.critic || mode === "grpo";
    }
    this.normalise.checked = settings.normalize_advantages;
    this.normalise.disabled = !can.critic || mode === "grpo";
    this.reset.disabled = !changed;
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
