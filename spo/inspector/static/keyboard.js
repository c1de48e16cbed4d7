// Keys, and the overlay that lists them.

import { h } from "./dom.js";

const KEYS = [
  ["← →", "previous / next token"],
  ["↑ ↓ or p n", "previous / next segment"],
  ["h l", "previous / next completion"],
  ["k j", "previous / next prompt"],
  ["[ ]", "previous / next step"],
  ["e o v a g", "colour by entropy, log-prob, value, advantage, reference gap"],
  ["/", "search in this prompt's completions"],
  ["r", "settings back to training"],
  ["?", "this help"],
];
const COLOUR_KEYS = { e: "entropy", o: "logprob", v: "value", a: "advantage", g: "gap" };
const MOVES = {
  ArrowLeft: ["moveToken", -1],
  ArrowRight: ["moveToken", 1],
  ArrowUp: ["moveSegment", -1],
  ArrowDown: ["moveSegment", 1],
  p: ["moveSegment", -1],
  n: ["moveSegment", 1],
  h: ["moveCompletion", -1],
  l: ["moveCompletion", 1],
  k: ["movePrompt", -1],
  j: ["movePrompt", 1],
  "[": ["moveStep", -1],
  "]": ["moveStep", 1],
};
const ELSEWHERE = "input, select, textarea, dialog, [role=tab], [role=grid], table, [contenteditable]";

/** Keys typed into a field or another component stay there; a hidden reader hears none. */
export function listen(root, page) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.(ELSEWHERE) && !event.target.closest(".text");
    const modified = event.ctrlKey || event.metaKey || event.altKey;
    if (typing || modified || !root.offsetParent || !page.steps) return;
    const { key } = event;
    const [move, by] = (Object.hasOwn(MOVES, key) && MOVES[key]) || [];
    if (move && (page.group || move === "moveStep")) page[move](by);
    else if (Object.hasOwn(COLOUR_KEYS, key) && page.group) page.setColour(COLOUR_KEYS[key]);
    else if (key === "r" && page.group) page.change(null);
    else if (key === "/") page.frame.search.focus();
    else if (key === "?") page.frame.help.showModal();
    else return;
    event.preventDefault();
  });
}

/** The overlay; a <dialog> closes on Escape by itself. */
export function helpDialog() {
  const lines = KEYS.map(([keys, words]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, words)]);
  const marks =
    "A bar before a token starts a segment. Dotted: merged against training. " +
    "Thick: split against training. Double underline: the advantage changed its sign.";
  const close = h("button", { onclick: () => dialog.close() }, "Close");
  const dialog = h("dialog", { class: "help", "aria-label": "Keys" });
  dialog.append(h("h3", {}, "Keys"), h("dl", {}, lines), h("p", { class: "hint" }, marks), close);
  return dialog;
}
