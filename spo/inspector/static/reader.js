// The completions of one prompt side by side: header, strips and text of each.

import { CompletionText } from "./completion.js";
import { segmentSpan } from "./detail.js";
import { h, show, signed } from "./dom.js";
import { makeScale } from "./scale.js";
import { Strips } from "./strips.js";

const FOLD_FROM = 8; // shared tokens worth folding away

export class Reader {
  /** @param on its point() hears of the pointer over a token, its focus() of a choice */
  constructor(group, on) {
    this.focused = [-1, -1];
    const folds = group.shared >= FOLD_FROM;
    const shared = folds ? group.shared : 0;
    this.cards = group.completions.map((one, index) => makeCard(one, index, shared, on));
    const look = { class: "columns", tabindex: 0, role: "region", "aria-label": "Completions" };
    this.columns = h("div", look, this.cards.map((card) => card.element));
    this.fold = h("input", { type: "checkbox", checked: true });
    const words = ` ⋯ ${shared} tokens that all completions begin with`;
    const fold = folds ? h("label", { class: "fold" }, this.fold, words) : null;
    this.element = h("div", {}, fold, this.columns);
  }

  /** Colours all cards by what `creditOf(completion)` shows; returns the scale, up to `end`. */
  paint(colour, creditOf, end) {
    const credits = this.cards.map((card) => creditOf(card.completion));
    const numbers = this.cards.map((card, i) => colour.of(card.completion, credits[i]));
    const scale = makeScale(numbers.filter((array) => array), end);
    this.cards.forEach((card, i) => {
      card.text.paint(numbers[i], scale, credits[i], card.completion.saved);
      card.strips?.update(credits[i]);
      const count = (credits[i].segmentIds.at(-1) ?? -1) + 1;
      card.count.textContent = `${count} segment${count === 1 ? "" : "s"}`;
    });
    return scale;
  }

  /** Makes one token the current one; `take` also gives it the keyboard's focus. */
  focus(index, at, credit, take) {
    const card = this.cards[index];
    const [previousCard, previous] = this.focused;
    this.cards[previousCard]?.strips?.mark(-1);
    this.cards[previousCard]?.element.classList.remove("current");
    card.element.classList.add("current");
    card.strips?.mark(at);
    this.focused = [index, at];
    const { scrollLeft, clientWidth } = this.columns;
    const left = card.element.offsetLeft - this.columns.offsetLeft;
    const right = left + card.element.clientWidth;
    if (left < scrollLeft || right > scrollLeft + clientWidth) this.columns.scrollLeft = left;
    if (at < 0) return;
    if (card.text.kinds[at].includes("shared")) this.fold.checked = false;
    card.text.select(at, previousCard === index ? previous : 0, take);
    highlight(card.text.spans, credit.segmentIds, at);
    const items = card.completion.reference?.items ?? [];
    const met = items.flatMap(([from, to]) => rangesOf(card.completion, card.text.spans, from, to));
    CSS.highlights?.set("spo-met", new Highlight(...met));
  }

  /** Ranges of a text in all completions, whatever tokens it spans. */
  textRanges(wanted) {
    return this.cards.flatMap(({ completion, text }) => {
      const lower = completion.text.toLowerCase();
      const found = [];
      for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, at + 1))
        found.push(...rangesOf(completion, text.spans, at, at + wanted.length));
      return found;
    });
  }

  /** Positions in the group of the completions ticked for export. */
  get ticked() {
    return this.cards.filter((card) => card.tick.checked).map((card) => card.completion.completion);
  }
}

function makeCard(completion, index, shared, on) {
  const number = completion.completion + 1;
  const text = new CompletionText(completion, shared);
  const { hasTokens, length } = completion;
  const strips = length && hasTokens ? new Strips(completion, (at) => on.focus(index, at)) : null;
  const tick = h("input", { type: "checkbox", "aria-label": `Select completion ${number}` });
  const count = h("span", { class: "count" });
  text.element.role = "group";
  text.element.ariaLabel = `Completion ${number}, token by token`;
  text.element.onmouseover = (event) => {
    const at = text.tokenAt(event);
    if (at >= 0 && hasTokens) on.point(index, at, event.target);
  };
  text.element.onclick = (event) => {
    const at = text.tokenAt(event);
    if (at >= 0) on.focus(index, at);
  };
  const tokens = hasTokens ? [h("span", { class: "count" }, `${length} tokens`), count] : null;
  const title = h("label", {}, tick, ` #${number}`);
  const head = h("header", {}, title, chips(completion), tokens);
  const empty = length ? null : h("p", { class: "hint" }, "Empty completion.");
  const card = h("article", { class: "card", "data-completion": completion.completion });
  const parts = [head, perFunction(completion), strips?.element, empty, text.element];
  card.append(...parts.filter(Boolean));
  return { completion, element: card, text, strips, tick, count };
}

function chips({ reward, truncated, hasTokens, advantages }) {
  const chip = (text, kind = "chip") => h("span", { class: kind }, text);
  return [
    reward === null ? chip("unscorable", "chip warn") : chip(`reward ${show(reward)}`),
    truncated ? chip("truncated", "chip warn") : null,
    hasTokens ? null : chip(`advantage ${signed(advantages[0])}`),
  ];
}

function perFunction({ rewards }) {
  const value = (x) => h("b", {}, x === null ? "none" : show(x));
  const line = ([name, x]) => h("li", {}, h("span", {}, name), value(x));
  const lines = Object.entries(rewards).map(line);
  return lines.length ? h("ul", { class: "rewards" }, lines) : null;
}

/** Marks a token and its segment without touching their class names, where the browser can. */
function highlight(spans, segmentIds, at) {
  if (!CSS.highlights) return;
  const { start, stop } = segmentSpan(segmentIds, at);
  CSS.highlights.set("spo-segment", new Highlight(rangeOf(spans[start], spans[stop - 1])));
  CSS.highlights.set("spo-token", new Highlight(rangeOf(spans[at], spans[at])));
}

/** The tokens that hold a stretch of the completion's text, as a range; none where it has none. */
function rangesOf({ ends }, spans, from, to) {
  const first = ends.findIndex((end) => end > from);
  const last = ends.findIndex((end) => end >= to);
  return first >= 0 && last >= 0 ? [rangeOf(spans[first], spans[last])] : [];
}

function rangeOf(first, last) {
  const range = document.createRange();
  range.setStart(first, 0);
  range.setEnd(last, last.childNodes.length);
  return range;
}
