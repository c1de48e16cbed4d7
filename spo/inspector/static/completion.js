// One completion as text: a span per token, built once; afterwards only class names change.
// Each line of text is one block that the browser skips while it is out of sight.

import { tokenText } from "./data.js";
import { visible } from "./dom.js";
import { colourClass } from "./scale.js";

const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/;
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200d\u2060\ufeff]/;

// A token's look as one integer, so that a repaint compares numbers and touches what changed.
const SAVED_START = 16;
const NEW_START = 32;
const FLIPPED = 64;

const REST = 150; // ms without a new setting until lines out of sight are painted, too

export class CompletionText {
  /** @param shared how many leading tokens all completions of the group have in common */
  constructor(completion, shared, fork) {
    this.completion = completion;
    this.spans = [];
    this.looks = new Int16Array(completion.length).fill(-1);
    this.kinds = [];
    this.lines = [];
    this.element = document.createElement("div");
    this.element.className = "text";
    this.element.dir = "auto";
    this.build(shared, fork);
    this.lookup = new Map(this.spans.map((span, at) => [span, at]));
    if (this.spans.length) this.spans[0].tabIndex = 0;
  }

  build(shared, fork) {
    let line = null;
    for (let at = 0; at < this.completion.length; at++) {
      line ??= this.addLine(at);
      const text = tokenText(this.completion, at);
      const span = document.createElement("span");
      span.textContent = text;
      line.element.append(span);
      line.stop = at + 1;
      this.spans.push(span);
      const place = (at < shared ? " shared" : "") + (at === fork ? " fork" : "");
      const part = partOf(this.completion, at);
      if (part) span.dataset.part = `${part.number}/${part.of}`;
      this.kinds.push((part ? "t part" : tokenKind(text)) + place);
      if (text.endsWith("\n")) line = null;
    }
    const rest = this.completion.text.slice(this.completion.ends.at(-1) ?? 0);
    if (rest) this.element.append(rest);
  }

  addLine(start) {
    const element = document.createElement("div");
    element.className = "line";
    this.element.append(element);
    const line = { element, start, stop: start, skipped: false };
    element.addEventListener("contentvisibilityautostatechange", (event) => {
      line.skipped = event.skipped;
    });
    this.lines.push(line);
    return line;
  }

  /**
   * Colours by `numbers` and draws the boundaries of `credit`; with `reference` also how they and
   * the signs of the advantages differ from it. Lines in sight change at once, the others when
   * the settings rest.
   */
  paint(numbers, scale, credit, reference = credit) {
    const look = (at) => lookOf(at, numbers, scale, credit, reference);
    clearTimeout(this.resting);
    for (const line of this.lines) if (!line.skipped) this.paintLine(line, look);
    this.resting = setTimeout(() => {
      for (const line of this.lines) this.paintLine(line, look);
    }, REST);
  }

  paintLine({ start, stop }, look) {
    for (let at = start; at < stop; at++) {
      const now = look(at);
      if (now === this.looks[at]) continue;
      this.looks[at] = now;
      this.spans[at].className = className(now, this.kinds[at]);
    }
  }

  /** The token an event happened on, −1 for none. */
  tokenAt(event) {
    return this.lookup.get(event.target) ?? -1;
  }

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

/** Which part of a character a token without text is: {number, of, char}; null if of none. */
export function partOf({ ends, length, text }, at) {
  const startOf = (token) => (token ? ends[token - 1] : 0);
  const start = startOf(at);
  if (ends[at] !== start) return null;
  let [first, last] = [at, at];
  while (first > 0 && startOf(first - 1) === start) first--;
  while (last < length && ends[last] === start) last++;
  if (last === length) return null; // an end token
  const char = String.fromCodePoint(text.codePointAt(start));
  return { number: at - first + 1, of: last - first + 1, char };
}

/** A token's text for a label. */
export function tokenTitle(completion, at) {
  const part = partOf(completion, at);
  if (part) return `part ${part.number} of ${part.of} of “${part.char}”`;
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
  let kind = "t";
  if (text.endsWith("\n")) kind += " newline";
  if (BIDI.test(text)) kind += " bidi";
  else if (CONTROL.test(text)) kind += " control";
  return kind;
}

function className(look, kind) {
  const saved = look & SAVED_START;
  const now = look & NEW_START;
  let name = `${kind} c${look & 15}`;
  if (saved && now) name += " cut";
  else if (now) name += " split";
  else if (saved) name += " merged";
  return look & FLIPPED ? `${name} flip` : name;
}

/** How many leading tokens all completions share, and where each leaves its closest neighbour. */
export function forks(completions) {
  const lengths = completions.map((a) =>
    completions.filter((b) => b !== a).map((b) => commonPrefix(a.token_ids, b.token_ids)),
  );
  const all = lengths.flat();
  return {
    shared: all.length ? Math.min(...all) : 0,
    forkOf: lengths.map((others) => (others.length ? Math.max(...others) : -1)),
  };
}

function commonPrefix(a, b) {
  const stop = Math.min(a.length, b.length);
  let at = 0;
  while (at < stop && a[at] === b[at]) at++;
  return at;
}
