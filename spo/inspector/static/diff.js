// Two token sequences aligned: Myers' greedy difference (1986), which is fast when they are alike.

const MOST_EDITS = 600;

/**
 * Pairs [i, j] of aligned tokens of a and b, i or j = −1 for a token only one of them has.
 * Beyond MOST_EDITS differences the rest is shown as replaced.
 */
export function align(a, b) {
  const traces = [];
  let frontier = new Map([[1, 0]]);
  for (let edits = 0; edits <= Math.min(a.length + b.length, MOST_EDITS); edits++) {
    traces.push(new Map(frontier));
    for (let k = -edits; k <= edits; k += 2) {
      const down =
        k === -edits || (k !== edits && (frontier.get(k - 1) ?? -1) < (frontier.get(k + 1) ?? -1));
      let i = down ? frontier.get(k + 1) : frontier.get(k - 1) + 1;
      let j = i - k;
      while (i < a.length && j < b.length && a[i] === b[j]) {
        i++;
        j++;
      }
      frontier.set(k, i);
      if (i >= a.length && j >= b.length) return backtrack(traces, a.length, b.length);
    }
  }
  return replaced(a, b);
}

function backtrack(traces, lengthA, lengthB) {
  const pairs = [];
  let i = lengthA;
  let j = lengthB;
  for (let edits = traces.length - 1; edits >= 0 && (i > 0 || j > 0); edits--) {
    const frontier = traces[edits];
    const k = i - j;
    const down =
      k === -edits || (k !== edits && (frontier.get(k - 1) ?? -1) < (frontier.get(k + 1) ?? -1));
    const previousK = down ? k + 1 : k - 1;
    const fromI = edits === 0 ? 0 : frontier.get(previousK);
    const fromJ = edits === 0 ? 0 : fromI - previousK;
    while (i > fromI && j > fromJ) pairs.push([--i, --j]);
    if (edits === 0) break;
    pairs.push(down ? [-1, --j] : [--i, -1]);
  }
  return pairs.reverse();
}

/** The common beginning, then all of a, then all of b. */
function replaced(a, b) {
  const pairs = [];
  let at = 0;
  while (at < a.length && at < b.length && a[at] === b[at]) pairs.push([at, at++]);
  for (let i = at; i < a.length; i++) pairs.push([i, -1]);
  for (let j = at; j < b.length; j++) pairs.push([-1, j]);
  return pairs;
}
