// The completions of one prompt side by side: header, strips and text of each.

import { CompletionText, forks } from "./completion.js";
import { segmentSpan } from "./detail.js";
import { h, show, signed } from "./dom.js";
import { makeScale } from "./scale.js";
import { Strips } from "./strips.js";

const FOLD_FROM = 8; // shared tokens worth folding away

export class Reader {
  /** @param on {point, leave, pick}: pointer over a token, pointer gone, token chosen */
  constructor(group, on, { foldable = true, compare = true } = {}) {
    this.compare = compare; // mark what differs from training
    this.cards = [];
    this.focused = [-1, -1];
    const { shared, forkOf } = forks(group.completions);
    const folds = foldable && shared >= FOLD_FROM;
    group.completions.forEach((completion, index) => {
      this.cards.push(makeCard(completion, index, folds ? shared : 0, forkOf[index], on));
    });
    this.columns = h(
      "div",
      { class: "columns" },
      this.cards.map((card) => card.element),
    );
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

  /** Colours all cards; `creditOf(completion)` is what is shown. Returns the scale used. */
  paint(colour, creditOf, common = null) {
    const credits = this.cards.map((card) => creditOf(card.completion));
    const numbers = this.cards.map((card, i) => colour.of(card.completion, credits[i]));
    const scale = common ?? makeScale(numbers.filter((array) => array));
    this.cards.forEach((card, i) => {
      card.text.paint(
        numbers[i],
        scale,
        credits[i],
        this.compare ? card.completion.saved : credits[i],
      );
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

  /** Positions in the group of the completions ticked for export. */
  get ticked() {
    return this.cards.filter((card) => card.tick.checked).map((card) => card.completion.completion);
  }
}

function makeCard(completion, index, shared, fork, on) {
  const text = new CompletionText(completion, shared, fork);
  const strips =
    completion.token_ids.length && completion.hasTokens
      ? new Strips(completion, (at) => on.pick(index, at))
      : null;
  const tick = h("input", {
    type: "checkbox",
    "aria-label": `Select completion ${completion.completion + 1}`,
  });
  const count = h("span", { class: "count" });
  text.element.setAttribute("role", "group");
  text.element.setAttribute(
    "aria-label",
    `Completion ${completion.completion + 1}, token by token`,
  );
  text.element.addEventListener("mouseover", (event) => {
    const at = text.tokenAt(event);
    if (at >= 0 && completion.hasTokens) on.point(index, at, event.target);
  });
  text.element.addEventListener("mouseleave", on.leave);
  text.element.addEventListener("click", (event) => {
    const at = text.tokenAt(event);
    if (at >= 0) on.pick(index, at);
  });
  const element = h(
    "article",
    { class: "card", "data-completion": completion.completion },
    h(
      "header",
      {},
      h("label", {}, tick, ` #${completion.completion + 1}`),
      rewardChip(completion),
      marks(completion),
      h("span", { class: "count" }, `${completion.length} tokens`),
      count,
    ),
    perFunction(completion),
    strips?.element,
    completion.length ? null : h("p", { class: "hint" }, "Empty completion."),
    text.element,
  );
  if (!completion.hasTokens) element.querySelectorAll(".count").forEach((node) => node.remove());
  return { element, text, strips, tick, count, completion };
}

function rewardChip(completion) {
  const label = completion.reward === null ? "unscorable" : `reward ${show(completion.reward)}`;
  return h("span", { class: completion.reward === null ? "chip warn" : "chip" }, label);
}

function marks(completion) {
  const notes = [];
  if (completion.truncated) notes.push(h("span", { class: "chip warn" }, "truncated"));
  if (!completion.hasTokens) {
    notes.push(h("span", { class: "chip" }, `advantage ${signed(completion.advantages[0])}`));
  }
  return notes;
}

function perFunction(completion) {
  const names = Object.entries(completion.rewards);
  if (names.length < 1) return null;
  return h(
    "ul",
    { class: "rewards" },
    names.map(([name, x]) =>
      h("li", {}, h("span", {}, name), h("b", {}, x === null ? "none" : show(x))),
    ),
  );
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
