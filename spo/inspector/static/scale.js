// Numbers of tokens -> one of 15 colour classes: c0 … c6 orange, c7 neutral, c8 … c14 blue, which
// stay apart under every common colour blindness.

export const COLOURS = {
  entropy: { label: "Entropy", unit: "nats", of: (c) => c.entropies },
  logprob: { label: "Log-prob", unit: "nats", of: (c) => c.logprobs },
  value: { label: "Value", unit: "", of: (c) => c.values },
  advantage: { label: "Advantage", unit: "", of: (c, credit) => credit.advantages },
  gap: { label: "Reference gap", unit: "nats", of: (c) => referenceGap(c) },
};

/** The measure of a name from the address. */
export function colourOf(name) {
  return Object.hasOwn(COLOURS, name) ? COLOURS[name] : COLOURS.advantage;
}

const referenceGap = ({ logprobs, logprobs_ref: other }) =>
  other && logprobs.map((x, at) => x - other[at]);

/** The scale of some arrays: diverging around 0 where both signs occur. It ends at `end`, a high
 * percentile of the step; `beyond` numbers lie outside and take the last colour. */
export function makeScale(arrays, end = 0) {
  let [low, high] = [0, 0];
  for (const array of arrays) {
    for (const x of array) {
      if (x < low) low = x;
      else if (x > high) high = x;
    }
  }
  const reach = end > 0 ? end : Math.max(-low, high) || 1;
  let beyond = 0;
  for (const array of arrays) for (const x of array) if (Math.abs(x) > reach) beyond++;
  return { low: low < 0 ? -reach : 0, high: high > 0 ? reach : 0, reach, beyond };
}

/** The colour class, 0 … 14, of one number; only what is less than 2 % of the scale is white. */
export function colourClass(x, scale) {
  const share = x / scale.reach;
  if (!(Math.abs(share) >= 0.02)) return 7;
  return 7 + Math.sign(share) * Math.min(7, Math.ceil(7 * Math.abs(share)));
}
