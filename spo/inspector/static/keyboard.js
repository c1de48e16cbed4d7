// Keys, and the overlay that lists them.

import { h } from "./dom.js";

const KEYS = [
  ["← →", "previous / next token"],
  ["↑ ↓ or p n", "previous / next segment"],
  ["h l", "previous / next completion"],
  ["k j", "previous / next prompt"],
  ["[ ]", "previous / next step"],
  ["e o v a g", "colour by entropy, log-prob, value, advantage, reference gap"],
  ["r", "settings back to training"],
  ["?", "this help"],
  ["Esc", "close"],
];

/** @param page move…() and the like; keys typed into a field stay there. */
export function listen(root, page) {
  const actions = {
    ArrowLeft: () => page.moveToken(-1),
    ArrowRight: () => page.moveToken(1),
    ArrowUp: () => page.moveSegment(-1),
    ArrowDown: () => page.moveSegment(1),
    p: () => page.moveSegment(-1),
    n: () => page.moveSegment(1),
    h: () => page.moveCompletion(-1),
    l: () => page.moveCompletion(1),
    k: () => page.movePrompt(-1),
    j: () => page.movePrompt(1),
    "[": () => page.moveStep(-1),
    "]": () => page.moveStep(1),
    e: () => page.setColour("entropy"),
    o: () => page.setColour("logprob"),
    v: () => page.setColour("value"),
    a: () => page.setColour("advantage"),
    g: () => page.setColour("gap"),
    r: () => page.change(null),
    "?": () => page.help.showModal(),
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea, dialog");
    const inText = root.contains(event.target) || event.target === document.body;
    if (typing || !inText || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && !event.target.closest(".text") && page.state.token < 0)
      return;
    const action = actions[event.key];
    const opened = page.group || ["[", "]", "?"].includes(event.key);
    if (!action || !opened) return;
    event.preventDefault();
    action();
  });
}

/** The overlay; a <dialog> closes on Escape by itself. */
export function helpDialog() {
  const dialog = h(
    "dialog",
    { class: "help", "aria-label": "Keys" },
    h("h3", {}, "Keys"),
    h(
      "dl",
      {},
      KEYS.map(([keys, meaning]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, meaning)]),
    ),
    h(
      "p",
      { class: "hint" },
      "A bar before a token starts a segment. Dotted: merged against training. " +
        "Thick: split against training. Double underline: the advantage changed its sign.",
    ),
    h("button", { onclick: () => dialog.close() }, "Close"),
  );
  return dialog;
}
