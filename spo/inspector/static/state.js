// What the address holds: only what differs from the default; fields of other tabs stay.
import { COLOURS } from "./scale.js";

const NUMBERS = { step: -1, prompt: -1, completion: 0, token: -1 };
const DEFAULTS = { run: "", ...NUMBERS, tab: "", colour: "advantage", mode: "spo" };

/** Settings of the what-if: names of SPOConfig -> their short names in the address. */
const FRACTIONS = { entropy_percentile: "p", gamma: "gamma", lam: "lam" };
const SETTINGS = { ...FRACTIONS, advantage_level: "level", normalize_advantages: "norm" };

/** Address -> {state, settings}; what cannot be read keeps its default. */
export function readAddress(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) {
    const text = fields.get(name);
    if (text === null) continue;
    if (!Object.hasOwn(NUMBERS, name)) state[name] = text;
    else if (Number.isSafeInteger(Number(text))) state[name] = Number(text);
  }
  if (!["spo", "ppo", "grpo"].includes(state.mode)) state.mode = DEFAULTS.mode;
  if (!Object.hasOwn(COLOURS, state.colour)) state.colour = DEFAULTS.colour;
  const settings = {};
  for (const [name, short] of Object.entries(SETTINGS)) {
    const text = fields.get(short);
    if (!text) continue;
    if (name === "advantage_level") settings[name] = text === "token" ? "token" : "segment";
    else if (name === "normalize_advantages") settings[name] = text === "true";
    else if (Number(text) >= 0 && Number(text) <= 1) settings[name] = Number(text);
  }
  return { state, settings };
}

/** The same backwards; settings equal to the trained ones are left out. */
export function writeAddress(state, settings, trained) {
  const fields = new URLSearchParams(location.hash.slice(1));
  const set = (name, value, fallback) =>
    value === fallback ? fields.delete(name) : fields.set(name, value);
  for (const [name, fallback] of Object.entries(DEFAULTS)) set(name, state[name], fallback);
  for (const [name, short] of Object.entries(trained ? SETTINGS : {}))
    set(short, settings[name], trained[name]);
  return `#${fields}`;
}
