// A small twin of spo.advantages.assign_credit, for an answer within one frame. The Python function
// stays the authority: the page asks it once a slider rests, and a test holds both equal.
// A step is flat here: N tokens, completion after completion, without padding.

const MIN_BOUNDARY_ENTROPY = Math.fround(1e-6);
const MIN_STD = 1e-6;

/** Server answer (typed arrays already) -> what assignCredit reads. */
export function prepareStep(inputs) {
  const { lengths, in_loss: inLoss, row_advantages: rowAdvantages, entropies, values } = inputs;
  const offsets = new Int32Array(lengths.length + 1);
  lengths.forEach((length, row) => (offsets[row + 1] = offsets[row] + length));
  const rewards = new Float32Array(entropies.length);
  inputs.reward_positions.forEach((at, i) => (rewards[at] = inputs.reward_values[i]));
  const mask = new Uint8Array(entropies.length);
  lengths.forEach((_, row) => mask.fill(inLoss[row], offsets[row], offsets[row + 1]));
  const { boundaries, actions } = inputs; // boundaries of another rule stay as they are
  const turns = []; // where the policy speaks again after a tool or the environment
  for (let at = 0; actions && at < mask.length; at++) {
    if (!actions[at]) mask[at] = 0;
    else if (mask[at] && at && !actions[at - 1] && !offsets.includes(at)) turns.push(at);
  }
  const sorted = entropies.filter((_, at) => mask[at]).sort(); // typed arrays sort by number
  const rows = { offsets, inLoss, rowAdvantages };
  return { ...rows, mask, entropies, sorted, values, rewards, boundaries, turns };
}

/** Python's round(): halves go to the even neighbour. */
function roundHalfEven(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Segments and advantages of a whole step under `config` (names as in SPOConfig, plus `mode`:
 * "spo", "ppo" = every token a segment, "grpo" = no critic and no cut). */
export function assignCredit(step, config) {
  const p = { spo: config.entropy_percentile, ppo: 1, grpo: 0 }[config.mode];
  const values = config.mode === "grpo" ? null : step.values;
  const kept = config.mode === "spo" && step.boundaries;
  const { boundaries, cut } = kept ? { boundaries: kept, cut: null } : findBoundaries(step, p);
  for (const at of step.turns) boundaries[at] = 1;
  const segmentIds = numberSegments(step, boundaries);
  const { rewards } = step;
  if (!values) {
    return { segmentIds, boundaries, cut, advantages: rowAdvantages(step), mean: 0, std: 1 };
  }
  const raw = segmentGae(step, rewards, values, segmentIds, config);
  const { mean, std } = config.normalize_advantages ? statistics(raw, step) : { mean: 0, std: 1 };
  const advantages = new Float32Array(raw.length);
  for (let at = 0; at < raw.length; at++)
    advantages[at] = step.mask[at] ? (raw[at] - mean) / std : 0;
  return { segmentIds, boundaries, cut, advantages, mean, std };
}

/** The round(p·N) largest entropies; ties go to the earlier (row, position). */
function findBoundaries(step, p) {
  const { sorted, mask, entropies } = step;
  if (p === 1) return { boundaries: mask, cut: sorted.length ? sorted[0] : null };
  const total = sorted.length;
  let eligible = 0;
  while (eligible < total && sorted[total - 1 - eligible] > MIN_BOUNDARY_ENTROPY) eligible++;
  const count = Math.min(roundHalfEven(p * total), eligible);
  const boundaries = new Uint8Array(mask.length);
  if (count === 0) return { boundaries, cut: null };
  const cut = sorted[total - count];
  let above = 0;
  while (above < count && sorted[total - 1 - above] > cut) above++;
  let ties = count - above;
  for (let at = 0; at < mask.length; at++) {
    if (!mask[at] || entropies[at] < cut) continue;
    if (entropies[at] > cut || ties-- > 0) boundaries[at] = 1;
  }
  return { boundaries, cut };
}

/** 0, 1, 2, … in each completion; token 0 starts segment 0 whether it is a boundary or not. */
function numberSegments({ offsets }, boundaries) {
  const ids = new Int32Array(boundaries.length);
  for (let row = 0; row + 1 < offsets.length; row++) {
    let segment = 0;
    for (let at = offsets[row] + 1; at < offsets[row + 1]; at++) {
      segment += boundaries[at];
      ids[at] = segment;
    }
  }
  return ids;
}

/** δ_t = r_t + g V_{t+1} − V_t and A_t = δ_t + g l A_{t+1}, backwards over each completion. */
function segmentGae(step, rewards, stepValues, ids, config) {
  const { offsets } = step;
  const byToken = config.advantage_level === "token";
  const values = byToken ? stepValues : segmentValues(step, stepValues, ids, config.segment_value);
  const { gamma, lam } = config;
  const advantages = new Float64Array(values.length);
  for (let row = 0; row + 1 < offsets.length; row++) {
    const first = offsets[row];
    const last = offsets[row + 1] - 1;
    for (let at = last; at >= first; at--) {
      const cuts = at < last && ids[at + 1] !== ids[at];
      const nextValue = at < last ? values[at + 1] : 0;
      const nextAdvantage = at < last ? advantages[at + 1] : 0;
      const delta = rewards[at] + (cuts ? gamma : 1) * nextValue - values[at];
      advantages[at] = delta + (cuts ? gamma * lam : 1) * nextAdvantage;
    }
    if (byToken) continue;
    for (let at = first + 1; at <= last; at++) {
      if (ids[at] === ids[at - 1]) advantages[at] = advantages[at - 1];
    }
  }
  return advantages;
}

/** V of a segment at all its tokens: "start" needs no change, as the scan telescopes to it. */
function segmentValues({ offsets }, values, ids, kind) {
  if (kind === "start") return values;
  const spread = new Float64Array(values.length);
  for (let row = 0; row + 1 < offsets.length; row++) {
    let first = offsets[row];
    for (let at = first; at < offsets[row + 1]; at++) {
      const closes = at + 1 === offsets[row + 1] || ids[at + 1] !== ids[at];
      if (!closes) continue;
      let sum = 0;
      for (let inside = first; inside <= at; inside++) sum += values[inside];
      spread.fill(kind === "mean" ? sum / (at + 1 - first) : values[at], first, at + 1);
      first = at + 1;
    }
  }
  return spread;
}

/** GRPO: what Python gave every completion, on its tokens in the loss. */
function rowAdvantages({ offsets, mask, rowAdvantages }) {
  const advantages = new Float32Array(mask.length);
  rowAdvantages.forEach((x, row) => advantages.fill(x, offsets[row], offsets[row + 1]));
  return advantages.map((x, at) => (mask[at] ? x : 0));
}

/** Mean and std over the tokens of the loss; 0 and 1 where scaling would blow up noise. */
function statistics(numbers, { mask, sorted }) {
  let [sum, squares] = [0, 0];
  for (let at = 0; at < numbers.length; at++) if (mask[at]) sum += numbers[at];
  const mean = sum / sorted.length;
  for (let at = 0; at < numbers.length; at++) if (mask[at]) squares += (numbers[at] - mean) ** 2;
  const std = Math.sqrt(squares / sorted.length);
  return sorted.length < 2 || std < MIN_STD ? { mean: 0, std: 1 } : { mean, std };
}

/** The parts of every segment's advantage in one completion:
 * δ_k = R_k + γ V_{k+1} − V_k and A_k = δ_k + carried, carried = γ λ A_{k+1}. */
export function decompose(step, credit, config, row) {
  const { offsets, rewards } = step;
  const ids = credit.segmentIds;
  const kind = config.advantage_level === "token" ? "start" : config.segment_value;
  const values = segmentValues(step, step.values, ids, kind);
  const parts = [];
  let [carried, nextValue, reward] = [0, 0, 0];
  let stop = offsets[row + 1];
  for (let at = stop - 1; at >= offsets[row]; at--) {
    reward += rewards[at];
    if (at > offsets[row] && ids[at - 1] === ids[at]) continue;
    const gammaNext = config.gamma * nextValue;
    const delta = reward + gammaNext - values[at];
    const raw = delta + carried;
    const stopAt = stop - offsets[row];
    const sums = { reward, gammaNext, value: values[at], delta, carried, raw };
    const advantage = (raw - credit.mean) / credit.std;
    parts.push({ start: at - offsets[row], stop: stopAt, ...sums, advantage });
    carried = config.gamma * config.lam * raw;
    nextValue = values[at];
    stop = at;
    reward = 0;
  }
  return parts.reverse();
}
