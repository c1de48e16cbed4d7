// The fixed parts of the reader: tool bar, prompt, colour bar, panels. Holds no state of its own.

import { h, show, visible } from "./dom.js";
import { helpDialog } from "./keyboard.js";
import { COLOURS } from "./scale.js";
import { shareMenu } from "./share.js";

export class Frame {
  constructor(page) {
    this.page = page;
    this.help = helpDialog();
    this.notes = h("div", { class: "notes", role: "alert" });
    this.live = h("p", { class: "live", "aria-live": "polite" });
    this.detail = h("aside", { class: "detail", "aria-label": "Token and segment" });
    this.legend = h("div", { class: "legend" });
    this.prompt = h("details", { class: "prompt", open: true });
    this.completions = h("div", {});
    const text = h("div", { class: "main" }, this.prompt, this.colourBar(), this.completions);
    const body = h("div", { class: "body" }, text, this.detail);
    const controls = page.controls.element;
    this.element = h("div", { class: "app" });
    this.element.append(this.bar(), this.notes, controls, body, this.live, this.help);
  }

  bar() {
    const { page } = this;
    const onchange = () => page.go({ step: Number(this.step.value) });
    this.step = h("select", { "aria-label": "Step", onchange });
    this.place = h("span", { class: "place" });
    this.badge = h("button", { class: "badge", title: "Saved credit against assign_credit" });
    this.hits = h("span", { class: "hint", role: "status" });
    this.search = h("input", {
      type: "search",
      placeholder: "find in these completions",
      "aria-label": "Find in these completions",
      oninput: () => this.find(),
    });
    const step = (by, label) =>
      h("button", { "aria-label": label, onclick: () => page.moveStep(by) }, by < 0 ? "‹" : "›");
    const prompt = (by, label) =>
      h("button", { "aria-label": label, onclick: () => page.movePrompt(by) }, by < 0 ? "‹" : "›");
    const steps = [step(-1, "Previous step"), this.step, step(1, "Next step")];
    const prompts = [prompt(-1, "Previous prompt"), this.place, prompt(1, "Next prompt")];
    return h(
      "header",
      { class: "top" },
      page.exported
        ? h("h1", {}, "SPO inspector")
        : [h("span", { class: "stepper" }, steps), h("span", { class: "stepper" }, prompts)],
      this.search,
      this.hits,
      h("span", { class: "space" }),
      this.badge,
      shareMenu(page),
      h("button", { "aria-label": "Keys and marks", onclick: () => this.help.showModal() }, "?"),
    );
  }

  colourBar() {
    const button = ([name, { label }]) =>
      (this.colours[name] = h("button", { onclick: () => this.page.setColour(name) }, label));
    this.colours = {};
    const choice = h("div", { class: "choice" }, Object.entries(COLOURS).map(button));
    const caption = h("span", { class: "caption" }, "colour by");
    return (this.colourRow = h("div", { class: "row colours" }, caption, choice, this.legend));
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

  busy(on) {
    this.element.setAttribute("aria-busy", String(on));
  }

  showNothing() {
    this.badge.hidden = true;
    this.completions.replaceChildren(h("p", { class: "hint" }, "This step cannot be shown."));
    this.detail.replaceChildren();
  }

  setSteps(steps, skipped) {
    this.step.replaceChildren(...steps.map((step) => h("option", { value: step }, `step ${step}`)));
    if (steps.includes(this.page.state.step)) this.step.value = this.page.state.step;
    if (skipped) this.note(skipped);
  }

  setStep(step, { check, missing }) {
    this.step.value = step;
    const { text, state, title } = badgeOf(check);
    this.badge.hidden = false;
    this.badge.textContent = text;
    this.badge.className = `badge ${state}`;
    this.badge.title = title;
    this.badge.onclick = () => state === "differs" && this.goToRow(check.row, check.token);
    if (missing.length) this.note(`Reduced view: this file lacks ${missing.join(", ")}.`);
  }

  goToRow(row, token) {
    const size = this.page.group.completions.length;
    this.page.go({ prompt: Math.floor(row / size), completion: row % size, token });
  }

  setGroup(group, element) {
    const place = `Prompt ${group.group + 1} of ${this.page.summary.groups}`;
    this.place.textContent = place;
    const turns = group.turns.map(({ role, text }) =>
      h(
        "div",
        { class: `turn ${role === "user" ? "user" : ""}` },
        role ? h("b", {}, visible(role)) : null,
        h("pre", { dir: "auto" }, text),
      ),
    );
    this.prompt.replaceChildren(h("summary", {}, place), ...turns);
    this.completions.replaceChildren(element);
    const [first] = group.completions;
    this.colourRow.hidden = !first?.hasTokens;
    this.colours.value.disabled = !first?.values;
    this.colours.gap.disabled = !first?.logprobs_ref;
    if (this.search.value) this.find();
  }

  setColour(colour) {
    for (const [name, button] of Object.entries(this.colours)) {
      button.setAttribute("aria-pressed", String(name === colour));
    }
  }
}

function badgeOf(check) {
  if (check.state === "verified") {
    const title = "The saved advantages are those of assign_credit under the saved configuration";
    return { state: "verified", text: "✓ verified", title };
  }
  if (check.state === "impossible")
    return { state: "impossible", text: "not verifiable", title: check.reason };
  const size = check.max_difference === null ? "unbounded" : show(check.max_difference);
  const title =
    `${check.column} differ most at completion row ${check.row}, token ${check.token + 1}; ` +
    `${check.segments_moved} tokens lie in other segments. Click to go there.`;
  return { state: "differs", text: `differs by ${size}`, title };
}
