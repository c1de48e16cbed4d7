// The reference that the critic read beside a completion; where the two agree is marked in both.

import { h } from "./dom.js";

/** The text with the items that the completion has met before token `at`, and those it meets
 * later. Nothing where the critic read none. */
export function referencePanel({ reference, ends }, at) {
  if (!reference) return [];
  const place = at > 0 ? ends[at - 1] : 0; // where the token begins
  const spans = reference.items.map(([, end, from, to]) => ({ from, to, met: end < place }));
  spans.sort((a, b) => a.from - b.from);
  const pieces = [];
  let done = 0;
  for (const { from, to, met } of spans) {
    pieces.push(reference.text.slice(done, from));
    pieces.push(h("mark", { class: met ? "met" : "later" }, reference.text.slice(from, to)));
    done = to;
  }
  const count = spans.filter(({ met }) => met).length;
  const words = `${count} of ${spans.length} items met before this token; only the critic reads it`;
  return [
    h("h3", {}, `Reference: ${reference.origin}`),
    h("p", { class: "hint" }, words),
    h("div", { class: "reference", dir: "auto" }, pieces, reference.text.slice(done)),
  ];
}
