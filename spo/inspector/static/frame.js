// The fixed parts of the reader, which reader.html holds: tool bar, prompt, colour bar, notes.

import { press } from "./controls.js";
import { h, visible } from "./dom.js";
import { connectMenu } from "./share.js";

const PARTS = ["step", "place", "search", "hits", "badge", "menu", "keys", "notes", "controls"];
PARTS.push("prompt", "colours", "legend", "completions", "detail", "live", "help");

export class Frame {
  constructor(page, root) {
    this.page = page;
    this.element = root.querySelector(".spo");
    for (const name of PARTS) this[name] = root.querySelector(`.${name}`);
    for (const button of root.querySelectorAll("[data-step], [data-prompt]")) {
      const { step, prompt } = button.dataset;
      button.onclick = () => (step ? page.moveStep(Number(step)) : page.movePrompt(Number(prompt)));
    }
    for (const button of root.querySelectorAll("[data-choice] button")) {
      const { choice } = button.parentElement.dataset;
      const change = () => page.change({ [choice]: button.value });
      button.onclick = choice === "colour" ? () => page.setColour(button.value) : change;
    }
    this.step.onchange = () => page.go({ step: Number(this.step.value) });
    this.search.oninput = () => this.find();
    this.keys.onclick = () => this.help.showModal();
    connectMenu(this.menu, page);
  }

  /** Marks every occurrence of the searched text and goes to the first. */
  find() {
    const wanted = this.search.value.toLowerCase();
    const ranges = wanted ? this.page.reader.textRanges(wanted) : [];
    this.hits.textContent = wanted ? `${ranges.length} found` : "";
    if (CSS.highlights) CSS.highlights.set("spo-found", new Highlight(...ranges));
    ranges[0]?.startContainer.parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  note(sentence) {
    const words = visible(sentence);
    if ([...this.notes.children].some((old) => old.firstChild.data === words)) return;
    const close = h("button", { "aria-label": "Dismiss", onclick: () => line.remove() }, "×");
    const line = h("p", { class: "note" }, words, close);
    this.notes.append(line);
  }

  showNothing() {
    this.badge.hidden = true;
    this.completions.replaceChildren(h("p", { class: "hint" }, "This step cannot be shown."));
    this.detail.replaceChildren();
  }

  setSteps({ steps, note }) {
    this.step.replaceChildren(...steps.map((step) => h("option", { value: step }, `step ${step}`)));
    if (steps.includes(this.page.state.step)) this.step.value = this.page.state.step;
    if (note) this.note(note);
  }

  setStep(step, { check, badge, missing }) {
    this.step.value = step;
    Object.assign(this.badge, { hidden: false, textContent: badge.text, title: badge.title });
    this.badge.className = `badge ${check.state}`;
    this.badge.onclick = () => check.state === "differs" && this.page.go(badge.place);
    if (missing.length) this.note(`Reduced view: this file lacks ${missing.join(", ")}.`);
  }

  setGroup(group, element) {
    const place = `Prompt ${group.group + 1} of ${this.page.summary.groups}`;
    this.place.textContent = place;
    const turn = ({ role, text }) => {
      const name = role ? h("b", {}, visible(role)) : null;
      const kind = role === "user" ? "turn user" : "turn";
      return h("div", { class: kind }, name, h("pre", { dir: "auto" }, text));
    };
    this.prompt.replaceChildren(h("summary", {}, place), ...group.turns.map(turn));
    this.completions.replaceChildren(element);
    this.colours.hidden = !group.has_tokens;
    if (this.search.value) this.find();
  }

  setColour(colour, group) {
    const lacking = { value: !group.values, gap: !group.logprobs_ref };
    press(this.colours, "colour", colour, (value) => lacking[value] ?? false);
  }
}
