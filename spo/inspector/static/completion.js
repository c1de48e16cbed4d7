// One completion as text: a span per token, built once; afterwards only class names change. A few
// lines form a block, which the browser skips while it is out of sight.

import { tokenText } from "./data.js";
import { h, visible } from "./dom.js";
import { colourClass } from "./scale.js";

const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200d\u2060\ufeff]/;

// A token's look as one integer, so that a repaint compares numbers and touches what changed.
const [SAVED_START, NEW_START, FLIPPED] = [16, 32, 64];
const REST = 150; // ms without a new setting until what is out of sight is painted, too
const BLOCK = 60; // tokens from which a block ends with its line

export class CompletionText {
  /** @param shared how many leading tokens all completions of the group have in common */
  constructor(completion, shared) {
    this.completion = completion;
    this.spans = [];
    this.looks = new Int16Array(completion.length).fill(-1);
    this.kinds = [];
    this.blocks = [];
    this.element = h("div", { class: "text", dir: "auto" });
    this.build(shared);
    this.lookup = new Map(this.spans.map((span, at) => [span, at]));
    if (this.spans.length) this.spans[0].tabIndex = 0;
  }

  build(shared) {
    const { length, parts, fork, actions } = this.completion;
    let block = null;
    for (let at = 0; at < length; at++) {
      block ??= this.addBlock(at);
      const text = tokenText(this.completion, at);
      const span = document.createElement("span");
      span.textContent = text;
      block.element.append(span);
      block.stop = at + 1;
      this.spans.push(span);
      const tool = actions && !actions[at] ? " tool" : "";
      const place = (at < shared ? " shared" : "") + (at === fork ? " fork" : "") + tool;
      const part = Object.hasOwn(parts, at) && parts[at];
      if (part) span.dataset.part = `${part[0]}/${part[1]}`;
      this.kinds.push((part ? "t part" : tokenKind(text)) + place);
      if (text.endsWith("\n") && block.stop - block.start >= BLOCK) block = null;
    }
    const rest = this.completion.text.slice(this.completion.ends.at(-1) ?? 0);
    if (rest) this.element.append(rest);
  }

  addBlock(start) {
    const block = { element: h("div", { class: "block-of-text" }), start, stop: start };
    this.element.append(block.element);
    this.blocks.push(block);
    return block;
  }

  /** Colours by `numbers`, draws the boundaries of `credit` and how they and the signs differ from
   * `reference`. What is in the window changes at once, the rest when the settings rest. */
  paint(numbers, scale, credit, reference) {
    const paint = (block) => this.paintBlock(block, (at) => lookOf(at, numbers, scale, credit, reference));
    clearTimeout(this.resting);
    this.inWindow().forEach(paint);
    this.resting = setTimeout(() => this.blocks.forEach(paint), REST);
  }

  inWindow() {
    const { left, right } = this.element.getBoundingClientRect();
    if (right < 0 || left > innerWidth) return [];
    return this.blocks.filter(({ element }) => {
      const { top, bottom } = element.getBoundingClientRect();
      return bottom > 0 && top < innerHeight;
    });
  }

  paintBlock({ start, stop }, look) {
    for (let at = start; at < stop; at++) {
      const now = look(at);
      if (now === this.looks[at]) continue;
      this.looks[at] = now;
      this.spans[at].className = className(now, this.kinds[at]);
    }
  }

  /** The token an event happened on, −1 for none. */
  tokenAt(event) { return this.lookup.get(event.target) ?? -1; }

  /** Moves the current token; one token per completion is reachable by Tab. */
  select(at, previous, take) {
    if (previous >= 0 && this.spans[previous]) this.spans[previous].tabIndex = -1;
    const span = this.spans[at];
    span.tabIndex = 0;
    if (!take) return;
    span.focus({ preventScroll: true });
    span.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

/** A token's text for a label. */
export function tokenTitle(completion, at) {
  if (Object.hasOwn(completion.parts, at)) {
    const [number, of, char] = completion.parts[at];
    return `part ${number} of ${of} of “${char}”`;
  }
  return visible(tokenText(completion, at)) || "(no text)";
}

function lookOf(at, numbers, scale, credit, reference) {
  let look = colourClass(numbers ? numbers[at] : NaN, scale);
  if (at && reference.segmentIds[at] !== reference.segmentIds[at - 1]) look |= SAVED_START;
  if (at && credit.segmentIds[at] !== credit.segmentIds[at - 1]) look |= NEW_START;
  if (reference.advantages[at] * credit.advantages[at] < 0) look |= FLIPPED;
  return look;
}

function tokenKind(text) {
  if (text === "") return "t empty";
  const hidden = BIDI.test(text) ? " bidi" : CONTROL.test(text) ? " control" : "";
  return `t${text.endsWith("\n") ? " newline" : ""}${hidden}`;
}

function className(look, kind) {
  const [saved, now] = [look & SAVED_START, look & NEW_START];
  const start = saved && now ? " cut" : now ? " split" : saved ? " merged" : "";
  return `${kind} c${look & 15}${start}${look & FLIPPED ? " flip" : ""}`;
}
