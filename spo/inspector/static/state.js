// What the address holds: #run=…&step=…&prompt=…; only what differs from the default.

export const DEFAULTS = {
  run: "",
  step: -1,
  prompt: 0,
  completion: 0,
  token: -1,
  tab: "read",
  colour: "advantage",
  mode: "spo",
};

/** Settings of the what-if: names of SPOConfig -> their short names in the address. */
export const SETTINGS = {
  entropy_percentile: "p",
  gamma: "gamma",
  lam: "lam",
  advantage_level: "level",
  normalize_advantages: "norm",
};

/** Address -> {state, settings}; what cannot be read keeps its default. */
export function readAddress(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    if (!fields.has(name)) continue;
    const text = fields.get(name);
    const parsed = typeof fallback === "number" ? Number(text) : text;
    if (typeof fallback !== "number" || Number.isInteger(parsed)) state[name] = parsed;
  }
  const settings = {};
  for (const [name, short] of Object.entries(SETTINGS)) {
    if (!fields.has(short)) continue;
    const text = fields.get(short);
    if (name === "advantage_level") settings[name] = text === "token" ? "token" : "segment";
    else if (name === "normalize_advantages") settings[name] = text === "true";
    else if (text !== "" && Number(text) >= 0 && Number(text) <= 1) settings[name] = Number(text);
  }
  return { state, settings };
}

/** The same backwards; settings equal to the trained ones are left out. */
export function writeAddress(state, settings, trained) {
  const fields = new URLSearchParams();
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    if (state[name] !== fallback) fields.set(name, state[name]);
  }
  for (const [name, short] of Object.entries(SETTINGS)) {
    if (trained && settings[name] !== trained[name]) fields.set(short, settings[name]);
  }
  return `#${fields}`;
}
