// "What if": sliders and switches for the credit settings, and what changed against training.
import { startsSegment } from "./data.js";
import { h, show } from "./dom.js";

// Most of the interesting entropy_percentiles are small: the slider moves their square root.
const toSlider = (name, x) => (name === "entropy_percentile" ? Math.sqrt(x) : x);
const fromSlider = (name, x) => (name === "entropy_percentile" ? x * x : x);

export class Controls {
  /** @param onChange called with the changed settings, {mode}, or null to return to training */
  constructor(element, onChange) {
    Object.assign(this, { element, onChange, sliders: {} });
    for (const row of element.querySelectorAll("[data-setting]")) this.connect(row);
    const find = (selector) => element.querySelector(selector);
    this.normalise = find(".normalise");
    this.normalise.onchange = () => onChange({ normalize_advantages: this.normalise.checked });
    this.reset = find(".reset");
    this.reset.onclick = () => onChange(null);
    [this.line, this.status] = [find(".settings"), find(".status")];
  }

  connect(row) {
    const name = row.dataset.setting;
    const [slider, field] = row.querySelectorAll("input");
    slider.oninput = () => {
      field.value = Number(fromSlider(name, Number(slider.value)).toFixed(4));
      this.onChange({ [name]: Number(field.value) });
    };
    field.oninput = () => {
      const value = Number(field.value);
      if (field.value === "" || !(value >= 0 && value <= 1)) return;
      slider.value = toSlider(name, value);
      this.onChange({ [name]: value });
    };
    this.sliders[name] = { slider, field };
  }

  /** Shows settings; `can` says what the step allows: {critic, recompute, cut}. */
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
      slider.disabled = field.disabled = isCut ? mode !== "spo" || !can.cut : fixed;
    }
    press(this.element, "mode", mode, (value) => value === "ppo" && !can.critic);
    press(this.element, "advantage_level", settings.advantage_level, () => fixed);
    this.normalise.checked = settings.normalize_advantages;
    this.normalise.disabled = fixed;
    this.reset.disabled = !changed;
    const [p, gamma, lam] = Object.keys(this.sliders).map((name) => show(settings[name]));
    this.line.textContent = `${mode.toUpperCase()} · p ${p} · γ ${gamma} · λ ${lam}`;
  }
}

/** Presses one button of a choice. */
export function press(root, choice, current, disabled) {
  for (const button of root.querySelectorAll(`[data-choice=${choice}] button`)) {
    button.setAttribute("aria-pressed", String(button.value === current));
    button.disabled = disabled(button.value);
  }
}

/** Boundaries and advantages of some completions against others of theirs, such as training's. */
export function compare(completions, creditOf, otherOf) {
  const sum = { split: 0, merged: 0, flipped: 0, tokens: 0, change: 0, worst: 0 };
  for (const completion of completions) {
    const [credit, other] = [creditOf(completion), otherOf(completion)];
    for (let at = 0; at < completion.length; at++) {
      const was = startsSegment(other.segmentIds, at);
      const is = startsSegment(credit.segmentIds, at);
      if (is !== was) sum[is ? "split" : "merged"]++;
      const [a, b] = [credit.advantages[at], other.advantages[at]];
      if (a * b < 0) sum.flipped++;
      sum.change += Math.abs(a - b);
      sum.worst = Math.max(sum.worst, Math.abs(a - b) / Math.max(1, Math.abs(b)));
    }
    sum.tokens += completion.length;
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
