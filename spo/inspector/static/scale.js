// Numbers of tokens -> one of 15 colour classes: c0 … c6 orange, c7 neutral, c8 … c14 blue, which
// stay apart under every common colour blindness.

export const COLOURS = {
  entropy: { label: "Entropy", unit: "nats", of: (c) => c.entropies },
  logprob: { label: "Log-prob", unit: "nats", of: (c) => c.logprobs },
  value: { label: "Value", unit: "", of: (c) => c.values },
  advantage: { label: "Advantage", unit: "", of: (c, credit) => credit.advantages },
  gap: { label: "Reference gap", unit: "nats", of: (c) => referenceGap(c) },
};

const referenceGap = ({ logprobs, logprobs_ref: other }) =>
  other && logprobs.map((x, at) => x - other[at]);

/** The scale of some arrays: diverging around 0 where both signs occur. It ends at `end`, a high
 * percentile of the step; `beyond` numbers lie outside and take the last colour. */
export function makeScale(arrays, end = 0) {
  let [low, high, beyond] = [0, 0, 0];
  for (const array of arrays) {
    for (let at = 0; at < array.length; at++) {
      const x = array[at];
      if (x < low) low = x;
      else if (x > high) high = x;
      if (end > 0 && (x > end || x < -end)) beyond++;
    }
  }
  const reach = end > 0 ? end : Math.max(-low, high) || 1;
  return { low: low < 0 ? -reach : 0, high: high > 0 ? reach : 0, reach, beyond };
}

/** The colour class, 0 … 14, of one number; only what is less than 2 % of the scale is white. */
export function colourClass(x, { reach }) {
  if (x > 0.02 * reach) return x >= reach ? 14 : 7 + Math.ceil((7 * x) / reach);
  if (x < -0.02 * reach) return x <= -reach ? 0 : 7 - Math.ceil((-7 * x) / reach);
  return 7;
}
