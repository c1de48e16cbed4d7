// Numbers of tokens -> one of 15 colour classes: c0 … c6 orange, c7 neutral, c8 … c14 blue.
// Orange and blue stay apart under every common colour blindness, and boundaries and sign flips
// are drawn as lines as well.

export const COLOURS = {
  entropy: { label: "Entropy", unit: "nats", of: (c) => c.entropies },
  logprob: { label: "Log-prob", unit: "nats", of: (c) => c.logprobs },
  value: { label: "Value", unit: "", of: (c) => c.values },
  advantage: { label: "Advantage", unit: "", of: (c, credit) => credit.advantages },
  gap: { label: "Reference gap", unit: "nats", of: (c) => referenceGap(c) },
};

function referenceGap(completion) {
  if (!completion.logprobs_ref) return null;
  return completion.logprobs.map((x, at) => x - completion.logprobs_ref[at]);
}

/**
 * The scale of some arrays: diverging around 0 where both signs occur, else from the end nearer 0.
 * Ends are round numbers, so that small changes do not repaint everything.
 */
export function makeScale(arrays) {
  let low = 0;
  let high = 0;
  for (const array of arrays) {
    for (const x of array) {
      if (x < low) low = x;
      else if (x > high) high = x;
    }
  }
  const reach = roundUp(Math.max(-low, high));
  return { low: low < 0 ? -reach : 0, high: high > 0 ? reach : 0, reach };
}

function roundUp(x) {
  if (!(x > 0) || !Number.isFinite(x)) return 1;
  const power = 10 ** Math.floor(Math.log10(x));
  return power * [1, 1.5, 2, 3, 5, 7, 10].find((factor) => x <= factor * power * (1 + 1e-9));
}

/** The colour class, 0 … 14, of one number. */
export function colourClass(x, scale) {
  if (Number.isNaN(x)) return 7;
  return 7 + Math.max(-7, Math.min(7, Math.round((7 * x) / scale.reach)));
}
