// Reverse search: which segments of the whole run match, counted by step.

import { ask } from "./data.js";
import { h, show, svg, visible } from "./dom.js";

const MEASURES = {
  advantage: "advantage",
  entropy: "entropy at its start",
  value: "V at its start",
  reward: "final reward",
};
const MOST_SHOWN = 300;

export class SearchView {
  constructor(page) {
    this.page = page;
    this.request = 0;
    this.steps = null; // null: the whole run
    this.fields = {};
    const ranges = Object.entries(MEASURES).map(([name, label]) =>
      h(
        "div",
        { class: "range" },
        h("span", {}, label),
        this.field(name, "min", label),
        this.field(name, "max", label),
      ),
    );
    this.text = h("input", {
      type: "search",
      placeholder: "regex in the segment's text",
      "aria-label": "Regular expression in the segment's text",
    });
    this.scope = h(
      "select",
      { "aria-label": "Where to search" },
      h("option", { value: "run" }, "all steps"),
      h("option", { value: "step" }, "this step"),
    );
    this.progress = h("p", { class: "hint", role: "status" });
    this.chart = h("div", {});
    this.list = h("ol", { class: "matches" });
    const submit = (event) => {
      event.preventDefault();
      this.run();
    };
    this.element = h(
      "div",
      { class: "search-view" },
      h(
        "form",
        { onsubmit: submit },
        ranges,
        this.text,
        this.scope,
        h("button", { type: "submit", class: "primary" }, "Find segments"),
        h("button", { type: "button", onclick: () => this.stop() }, "Stop"),
      ),
      this.progress,
      this.chart,
      this.list,
    );
  }

  field(name, end, label) {
    const input = h("input", {
      type: "number",
      step: "any",
      placeholder: end,
      "aria-label": `${label} ${end}`,
    });
    this.fields[`${name}_${end}`] = input;
    return input;
  }

  /** Fills the form, e.g. from a click on the calibration plot, and searches. */
  start(query, scope) {
    for (const [name, input] of Object.entries(this.fields)) input.value = query[name] ?? "";
    this.text.value = "";
    this.scope.value = scope;
    return this.run();
  }

  stop() {
    this.request++;
    this.progress.textContent += " · stopped";
  }

  /** Slice after slice until the run is through, stopped, or asked anew. */
  async run() {
    const request = ++this.request;
    const query = { run: this.page.state.run, text: this.text.value };
    if (this.scope.value === "step") query.steps = [this.page.state.step];
    for (const [name, input] of Object.entries(this.fields)) {
      if (input.value !== "") query[name] = Number(input.value);
    }
    const counts = {};
    const matches = [];
    let skipped = 0;
    let start = 0;
    while (start !== null) {
      const slice = { ...query, start };
      const answer = await this.page.attempt(() => ask(this.page.server, "find_segments", slice));
      if (!answer || request !== this.request) return;
      Object.assign(counts, answer.counts);
      matches.push(...answer.matches.slice(0, MOST_SHOWN - matches.length));
      skipped += Object.keys(answer.skipped).length;
      this.show(counts, matches, skipped, answer.next !== null);
      start = answer.next;
    }
  }

  show(counts, matches, skipped, running) {
    const total = Object.values(counts).reduce((a, b) => a + b, 0);
    const shown = total > matches.length ? `, the first ${matches.length} listed` : "";
    const left = skipped ? ` · ${skipped} unreadable steps skipped` : "";
    this.progress.textContent = `${total} segments in ${Object.keys(counts).length} steps${shown}${left}${running ? " · searching…" : ""}`;
    this.chart.replaceChildren(this.bars(counts));
    this.list.replaceChildren(...matches.map((match) => this.line(match)));
  }

  line(match) {
    const place = {
      step: match.step,
      prompt: match.group,
      completion: match.completion,
      token: match.token,
      tab: "read",
    };
    return h(
      "li",
      {},
      h(
        "button",
        { onclick: () => this.page.go(place) },
        h("b", {}, `step ${match.step}`),
        h(
          "span",
          {},
          ` ${match.group + 1}.${match.completion + 1} · token ${match.token + 1} · A ${show(match.advantage)} · H ${show(match.entropy)} · reward ${show(match.reward)} `,
        ),
        h("span", { class: "snippet" }, visible(match.text)),
      ),
    );
  }

  /** Matches by step; a bar is a button to that step. */
  bars(counts) {
    const steps = Object.keys(counts)
      .map(Number)
      .sort((a, b) => a - b);
    const most = Math.max(1, ...Object.values(counts));
    const width = 600 / Math.max(1, steps.length);
    const picture = svg("svg", {
      class: "bars",
      viewBox: "0 0 600 64",
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": "Matches by step",
    });
    steps.forEach((step, i) => {
      const height = (60 * counts[step]) / most;
      picture.append(
        svg(
          "rect",
          {
            class: "bar",
            x: i * width,
            y: 62 - height,
            width: Math.max(0.5, width * 0.85),
            height: height + 1,
            onclick: () => this.page.go({ step, prompt: 0, completion: 0, token: -1, tab: "read" }),
          },
          svg("title", {}, `step ${step}: ${counts[step]} segments`),
        ),
      );
    });
    return picture;
  }
}
