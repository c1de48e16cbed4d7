// The same prompt at two steps of the training: completions aligned token by token.

import { ask, tokenText, unpackGroup } from "./data.js";
import { align } from "./diff.js";
import { h, show, signed, visible } from "./dom.js";
import { colourClass, makeScale } from "./scale.js";

const MEASURES = {
  entropy: { label: "entropy", of: (completion, at) => completion.entropies[at] },
  advantage: { label: "advantage", of: (completion, at) => completion.advantages[at] },
};

export class HistoryView {
  constructor(page) {
    this.page = page;
    this.request = 0;
    this.found = [];
    this.sides = { before: null, after: null };
    const redraw = () => this.draw();
    this.measure = h(
      "select",
      { "aria-label": "Measure to compare", onchange: redraw },
      Object.entries(MEASURES).map(([value, { label }]) =>
        h("option", { value }, `change of ${label}`),
      ),
    );
    this.pickers = { before: this.picker("before"), after: this.picker("after") };
    this.progress = h("p", { class: "hint", role: "status" });
    this.output = h("div", { class: "diff text" });
    this.facts = h("p", { class: "hint", "aria-live": "polite" });
    this.element = h(
      "section",
      { class: "history" },
      h("h3", {}, "This prompt across the training"),
      this.progress,
      h(
        "div",
        { class: "row" },
        this.pickers.before.element,
        h("span", {}, "→"),
        this.pickers.after.element,
        this.measure,
      ),
      this.facts,
      this.output,
    );
  }

  picker(side) {
    const step = h("select", { "aria-label": `Step ${side}`, onchange: () => this.pick(side) });
    const completion = h("select", {
      "aria-label": `Completion ${side}`,
      onchange: () => this.draw(),
    });
    return { step, completion, element: h("span", { class: "picker" }, step, completion) };
  }

  /** Finds the steps that saw the prompt; compares the first of them with the current one. */
  async open() {
    const { page } = this;
    const request = ++this.request;
    this.output.replaceChildren();
    this.found = [];
    let start = 0;
    while (start !== null) {
      this.progress.textContent = "Looking for this prompt in the run…";
      const query = { run: page.state.run, prompt: page.group.prompt, start };
      const answer = await page.attempt(() => ask(page.server, "find_prompt", query));
      if (!answer || request !== this.request) return;
      this.found.push(...answer.found);
      start = answer.next;
    }
    this.progress.textContent = `${this.found.length} saved steps hold this prompt.`;
    if (!this.found.length) return;
    for (const { step } of Object.values(this.pickers)) {
      step.replaceChildren(
        ...this.found.map(({ step: number, rewards }, i) => {
          const known = rewards.filter((x) => x !== null);
          const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
          return h("option", { value: i }, `step ${number} · mean reward ${show(mean)}`);
        }),
      );
    }
    const now = this.found.findIndex(({ step }) => step === page.state.step);
    this.pickers.after.step.value = now < 0 ? this.found.length - 1 : now;
    this.pickers.before.step.value = now === 0 ? this.found.length - 1 : 0;
    await Promise.all([this.pick("before"), this.pick("after")]);
  }

  /** Loads the group a side shows. */
  async pick(side) {
    const { page } = this;
    const { step, completion } = this.pickers[side];
    const place = this.found[Number(step.value)];
    const query = { run: page.state.run, step: place.step, group: place.group };
    const answer = await page.attempt(() => ask(page.server, "get_group", query));
    if (!answer) return;
    this.sides[side] = unpackGroup(answer);
    completion.replaceChildren(
      ...this.sides[side].completions.map((one, i) =>
        h("option", { value: i }, `#${i + 1} · reward ${show(one.reward)}`),
      ),
    );
    this.draw();
  }

  draw() {
    const [before, after] = ["before", "after"].map(
      (side) => this.sides[side]?.completions[Number(this.pickers[side].completion.value) || 0],
    );
    if (!before || !after) return;
    const { label, of } = MEASURES[this.measure.value];
    const pairs = align(before.token_ids, after.token_ids);
    const changes = pairs.map(([i, j]) => (i < 0 || j < 0 ? 0 : of(after, j) - of(before, i)));
    const scale = makeScale([changes]);
    const same = pairs.filter(([i, j]) => i >= 0 && j >= 0).length;
    this.facts.textContent =
      `${same} tokens in common, ${before.length - same} only before, ${after.length - same} only after. ` +
      `Point at a token for its ${label} before and after.`;
    this.output.replaceChildren(
      ...pairs.map(([i, j], at) => {
        const kept = i >= 0 && j >= 0;
        const text = j >= 0 ? tokenText(after, j) : tokenText(before, i);
        const span = h(kept ? "span" : j >= 0 ? "ins" : "del", {
          class: kept ? `t c${colourClass(changes[at], scale)}` : "t",
          onmouseenter: () => (this.facts.textContent = pairFacts(before, after, i, j)),
        });
        span.textContent = text;
        return span;
      }),
    );
  }
}

function pairFacts(before, after, i, j) {
  const text = visible(j >= 0 ? tokenText(after, j) : tokenText(before, i));
  const both = Object.values(MEASURES).map(({ label, of }) => {
    const [from, to] = [i >= 0 ? of(before, i) : null, j >= 0 ? of(after, j) : null];
    const change = from !== null && to !== null ? ` (${signed(to - from)})` : "";
    return `${label} ${show(from)} → ${show(to)}${change}`;
  });
  return `“${text}”: ${both.join(", ")}`;
}
