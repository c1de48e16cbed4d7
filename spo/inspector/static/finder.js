// The completions of a step as a list: sorted and filtered by the server, a page at a time.

import { ask } from "./data.js";
import { debounce, h, show, visible } from "./dom.js";

const RANGES = {
  reward: "reward",
  length: "tokens",
  segments: "segments",
  advantage: "largest |A|",
};
const SORTS = { position: "batch order", ...RANGES };

export class Finder {
  /** @param page its server, its run and step, and go() */
  constructor(page) {
    this.page = page;
    this.number = 0;
    this.request = 0;
    const again = debounce(250, () => this.load(0));
    this.text = h("input", {
      type: "search",
      placeholder: "regex in prompt or completion",
      oninput: again,
      "aria-label": "Regular expression in prompt or completion",
    });
    this.sort = h(
      "select",
      { "aria-label": "Sort by", onchange: () => this.load(0) },
      Object.entries(SORTS).map(([value, label]) => h("option", { value }, label)),
    );
    this.descending = h("input", { type: "checkbox", onchange: () => this.load(0) });
    this.bounds = {};
    const ranges = Object.entries(RANGES).map(([name, label]) => {
      const field = (end) =>
        (this.bounds[`${name}_${end}`] = h("input", {
          type: "number",
          step: "any",
          placeholder: end,
          "aria-label": `${label} ${end}`,
          oninput: again,
        }));
      return h("div", { class: "range" }, h("span", {}, label), field("min"), field("max"));
    });
    this.count = h("p", { class: "hint", role: "status" });
    this.list = h("ol", { class: "list" });
    this.more = h("div", { class: "pager" });
    this.element = h(
      "nav",
      { class: "finder", "aria-label": "Completions of this step" },
      this.text,
      h(
        "div",
        { class: "sort" },
        h("label", {}, "sort ", this.sort),
        h("label", {}, this.descending, " high first"),
      ),
      h("details", {}, h("summary", {}, "Filter by numbers"), ranges),
      this.count,
      this.list,
      this.more,
    );
  }

  query() {
    const query = {
      text: this.text.value,
      sort: this.sort.value,
      descending: this.descending.checked,
    };
    for (const [name, field] of Object.entries(this.bounds)) {
      if (field.value !== "") query[name] = Number(field.value);
    }
    return query;
  }

  /** Asks for one page; an answer that was overtaken by a newer request is dropped. */
  async load(number) {
    const { run, step } = this.page.state;
    const request = ++this.request;
    const query = { run, step, page: number, ...this.query() };
    const answer = await this.page.attempt(() => ask(this.page.server, "find_completions", query));
    if (!answer || request !== this.request) return;
    this.number = number;
    this.count.textContent = `${answer.total} completion${answer.total === 1 ? "" : "s"}`;
    this.list.replaceChildren(...answer.rows.map((row) => this.line(row)));
    this.mark();
    const pages = Math.ceil(answer.total / answer.page_size);
    this.more.replaceChildren(
      ...(pages < 2
        ? []
        : [
            h(
              "button",
              { disabled: number === 0, onclick: () => this.load(number - 1) },
              "‹ previous",
            ),
            h("span", {}, `${number + 1} of ${pages}`),
            h(
              "button",
              { disabled: number + 1 >= pages, onclick: () => this.load(number + 1) },
              "next ›",
            ),
          ]),
    );
  }

  line(row) {
    const button = h(
      "button",
      { onclick: () => this.page.go({ prompt: row.group, completion: row.completion, token: -1 }) },
      h(
        "span",
        { class: "top" },
        h("b", {}, `${row.group + 1}.${row.completion + 1}`),
        h("span", { class: "chip" }, row.reward === null ? "unscorable" : show(row.reward)),
        row.truncated ? h("span", { class: "chip warn" }, "truncated") : null,
        h(
          "span",
          { class: "meta" },
          `${row.length} tok · ${row.segments} seg · |A| ${show(row.advantage, 2)}`,
        ),
      ),
      h("span", { class: "snippet" }, visible(row.prompt)),
      h("span", { class: "snippet answer" }, visible(row.text)),
    );
    button.dataset.place = `${row.group}.${row.completion}`;
    return h("li", {}, button);
  }

  /** Marks the completion that is being read. */
  mark() {
    const { prompt, completion } = this.page.state;
    for (const button of this.list.querySelectorAll("button")) {
      const current = button.dataset.place === `${prompt}.${completion}`;
      button.setAttribute("aria-current", String(current));
    }
  }
}
