// The completions of one prompt side by side: header, strips and text of each.

import { CompletionText, forks } from "./completion.js";
import { segmentSpan } from "./detail.js";
import { h, show, signed } from "./dom.js";
import { makeScale } from "./scale.js";
import { Strips } from "./strips.js";

const FOLD_FROM = 8; // shared tokens worth folding away

export class Reader {
  /** @param on {point, leave, pick}: pointer over a token, pointer gone, token chosen */
  constructor(group, on) {
    this.focused = [-1, -1];
    const { shared, forkOf } = forks(group.completions);
    const folds = shared >= FOLD_FROM;
    this.cards = group.completions.map((completion, index) =>
      makeCard(completion, index, folds ? shared : 0, forkOf[index], on),
    );
    const label = { tabindex: 0, role: "region", "aria-label": "Completions" };
    this.columns = h("div", { class: "columns", ...label }, this.cards.map((card) => card.element));
    this.element = h("div", {}, folds ? this.foldButton(shared) : null, this.columns);
  }

  /** The shared beginning, folded away so that the forks stand side by side. */
  foldButton(shared) {
    const button = h("button", { class: "fold", "aria-expanded": "false" });
    const draw = (folded) => {
      this.columns.classList.toggle("folded", folded);
      button.setAttribute("aria-expanded", String(!folded));
      button.textContent = folded
        ? `⋯ ${shared} tokens that all completions begin with`
        : `Fold the ${shared} shared tokens`;
    };
    button.addEventListener("click", () => draw(!this.columns.classList.contains("folded")));
    draw(true);
    return button;
  }

  unfold() {
    if (this.columns.classList.contains("folded")) this.element.querySelector(".fold").click();
  }

  /** Colours all cards; `creditOf(completion)` is what is shown. Returns the scale, which ends at
   * `end`. */
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
    const { offsetLeft } = card.element;
    const { scrollLeft, clientWidth } = this.columns;
    const inside = offsetLeft - this.columns.offsetLeft;
    if (inside < scrollLeft || inside + card.element.clientWidth > scrollLeft + clientWidth) {
      this.columns.scrollLeft = inside;
    }
    if (at < 0) return;
    if (card.text.kinds[at].includes("shared")) this.unfold();
    card.text.select(at, previousCard === index ? previous : 0, take);
    highlight(card.text.spans, credit.segmentIds, at);
  }

  /** Ranges of a text in all completions, whatever tokens it spans. */
  textRanges(wanted) {
    return this.cards.flatMap(({ completion, text }) => {
      const lower = completion.text.toLowerCase();
      const found = [];
      for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, at + 1)) {
        const first = completion.ends.findIndex((end) => end > at);
        const last = completion.ends.findIndex((end) => end >= at + wanted.length);
        if (first >= 0 && last >= 0) found.push(rangeOf(text.spans[first], text.spans[last]));
      }
      return found;
    });
  }

  /** Positions in the group of the completions ticked for export. */
  get ticked() {
    return this.cards.filter((card) => card.tick.checked).map((card) => card.completion.completion);
  }
}

function makeCard(completion, index, shared, fork, on) {
  const number = completion.completion + 1;
  const text = new CompletionText(completion, shared, fork);
  const { hasTokens, length } = completion;
  const strips = length && hasTokens ? new Strips(completion, (at) => on.pick(index, at)) : null;
  const tick = h("input", { type: "checkbox", "aria-label": `Select completion ${number}` });
  const count = h("span", { class: "count" });
  text.element.setAttribute("role", "group");
  text.element.setAttribute("aria-label", `Completion ${number}, token by token`);
  text.element.addEventListener("mouseover", (event) => {
    const at = text.tokenAt(event);
    if (at >= 0 && hasTokens) on.point(index, at, event.target);
  });
  text.element.addEventListener("mouseleave", on.leave);
  text.element.addEventListener("click", (event) => {
    const at = text.tokenAt(event);
    if (at >= 0) on.pick(index, at);
  });
  const tokens = hasTokens ? [h("span", { class: "count" }, `${length} tokens`), count] : null;
  const title = h("label", {}, tick, ` #${number}`);
  const head = h("header", {}, title, rewardChip(completion), marks(completion), tokens);
  const empty = length ? null : h("p", { class: "hint" }, "Empty completion.");
  const card = h("article", { class: "card", "data-completion": completion.completion });
  card.append(...[head, perFunction(completion), strips?.element, empty].filter(Boolean), text.element);
  return { completion, element: card, text, strips, tick, count };
}

function rewardChip({ reward }) {
  if (reward === null) return h("span", { class: "chip warn" }, "unscorable");
  return h("span", { class: "chip" }, `reward ${show(reward)}`);
}

function marks(completion) {
  const chips = [];
  if (completion.truncated) chips.push(h("span", { class: "chip warn" }, "truncated"));
  if (!completion.hasTokens) {
    chips.push(h("span", { class: "chip" }, `advantage ${signed(completion.advantages[0])}`));
  }
  return chips;
}

function perFunction({ rewards }) {
  const line = ([name, x]) =>
    h("li", {}, h("span", {}, name), h("b", {}, x === null ? "none" : show(x)));
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

function rangeOf(first, last) {
  const range = document.createRange();
  range.setStart(first, 0);
  range.setEnd(last, last.childNodes.length);
  return range;
}
