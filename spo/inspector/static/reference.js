// The reference that the critic read beside a completion; where the two agree is marked in both.

import { h } from "./dom.js";

/** The text, items marked as met before token `at` or later; nothing where the critic read none. */
export function referencePanel({ reference, ends }, at) {
  if (!reference) return [];
  const place = at > 0 ? ends[at - 1] : 0; // where the token begins
  const spans = reference.items.map(([, end, from, to]) => [from, to, end < place ? "met" : "later"]);
  let done = 0;
  const pieces = spans.toSorted((a, b) => a[0] - b[0]).flatMap(([from, to, kind]) => {
    const before = reference.text.slice(done, from);
    return [before, h("mark", { class: kind }, reference.text.slice(from, (done = to)))];
  });
  const count = spans.filter(([, , kind]) => kind === "met").length;
  const words = `${count} of ${spans.length} items met before this token; only the critic reads it`;
  const text = h("div", { class: "reference", dir: "auto" }, pieces, reference.text.slice(done));
  return [h("h3", {}, `Reference: ${reference.origin}`), h("p", { class: "hint" }, words), text];
}
