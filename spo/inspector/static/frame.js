// The fixed parts of the page: header, side list, tabs, tool bar, panels. Holds no state of its own
// but what is being followed.

import { curve } from "./curves.js";
import { ask } from "./data.js";
import { h, show, visible } from "./dom.js";
import { Finder } from "./finder.js";
import { helpDialog } from "./keyboard.js";
import { COLOURS } from "./scale.js";
import { shareMenu } from "./share.js";
import { TABS } from "./views.js";

const FOLLOW_EVERY = 2000;

export class Frame {
  constructor(page) {
    this.page = page;
    this.help = helpDialog();
    this.notes = h("div", { class: "notes", role: "alert" });
    this.live = h("p", { class: "live", "aria-live": "polite" });
    this.detail = h("aside", { class: "detail", "aria-label": "Token and segment" });
    this.legend = h("div", { class: "legend" });
    this.prompt = h("details", { class: "prompt", open: true });
    this.panels = Object.fromEntries(
      Object.keys(TABS).map((name) => [
        name,
        h("div", { class: "panel", role: "tabpanel", id: `spo-panel-${name}`, hidden: true }),
      ]),
    );
    this.completions = h("div", {});
    this.finder = page.exported ? null : new Finder(page);
    this.element = h(
      "div",
      { class: "app" },
      this.header(),
      this.notes,
      h(
        "div",
        { class: "body" },
        this.finder &&
          h(
            "details",
            { class: "side", open: innerWidth > 900 },
            h("summary", {}, "Find completions"),
            this.finder.element,
          ),
        h("main", {}, this.tabBar(), page.controls.element, ...Object.values(this.panels)),
        this.detail,
      ),
      this.live,
      this.help,
    );
    this.panels.read.append(this.prompt, this.colourBar(), this.completions);
  }

  header() {
    const { page } = this;
    this.run = h("select", {
      "aria-label": "Run",
      onchange: () => page.go({ run: this.run.value, step: -1 }),
    });
    this.step = h("select", {
      "aria-label": "Step",
      onchange: () => page.go({ step: Number(this.step.value) }),
    });
    this.follow = h("input", { type: "checkbox", id: "spo-follow", onchange: () => this.look() });
    this.metric = h("select", { "aria-label": "Metric", onchange: () => this.drawMetric() });
    this.sparkline = h("span", { class: "sparkline" });
    this.badge = h("button", { class: "badge", title: "Saved credit against assign_credit" });
    if (!page.exported) setInterval(() => this.look(), FOLLOW_EVERY);
    return h(
      "header",
      { class: "top" },
      h("h1", {}, "SPO inspector"),
      this.run,
      h(
        "span",
        { class: "stepper" },
        h("button", { "aria-label": "Previous step", onclick: () => page.moveStep(-1) }, "‹"),
        this.step,
        h("button", { "aria-label": "Next step", onclick: () => page.moveStep(1) }, "›"),
      ),
      page.exported ? null : h("label", { for: "spo-follow" }, this.follow, " follow latest"),
      page.exported ? null : h("span", { class: "metric" }, this.metric, this.sparkline),
      h("span", { class: "space" }),
      this.badge,
      shareMenu(page),
      h("button", { "aria-label": "Keys and marks", onclick: () => this.help.showModal() }, "?"),
    );
  }

  tabBar() {
    this.tabs = Object.fromEntries(
      Object.entries(TABS).map(([name, label]) => [
        name,
        h(
          "button",
          {
            role: "tab",
            "aria-controls": `spo-panel-${name}`,
            onclick: () => this.page.go({ tab: name }),
          },
          label,
        ),
      ]),
    );
    const usable = this.page.exported ? ["read", "modes", "step"] : Object.keys(TABS);
    return h(
      "div",
      { class: "tabs", role: "tablist" },
      usable.map((name) => this.tabs[name]),
    );
  }

  colourBar() {
    this.colours = Object.fromEntries(
      Object.entries(COLOURS).map(([name, { label }]) => [
        name,
        h("button", { onclick: () => this.page.setColour(name) }, label),
      ]),
    );
    this.colourChoice = h("div", { class: "choice" }, Object.values(this.colours));
    this.colourRow = h(
      "div",
      { class: "row colours" },
      h("span", { class: "caption" }, "colour by"),
      this.colourChoice,
      this.legend,
    );
    return this.colourRow;
  }

  // --- what the page says about itself -------------------------------------------------------

  note(sentence) {
    const close = h("button", { "aria-label": "Dismiss", onclick: () => line.remove() }, "×");
    const line = h("p", { class: "note" }, visible(sentence), close);
    if ([...this.notes.children].some((old) => old.firstChild.data === visible(sentence))) return;
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

  setRuns(runs) {
    this.run.replaceChildren(...runs.map((run) => h("option", { value: run }, visible(run))));
    this.run.hidden = runs.length < 2;
  }

  setRun(run) {
    this.run.value = run;
    const names = Object.keys(this.page.curves).sort();
    const first = ["reward", "eval/accuracy", names[0]].find((name) => names.includes(name));
    this.metric.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (first) this.metric.value = first;
    this.metric.hidden = !names.length;
  }

  setSteps(steps, skipped) {
    this.step.replaceChildren(...steps.map((step) => h("option", { value: step }, `step ${step}`)));
    if (steps.includes(this.page.state.step)) this.step.value = this.page.state.step;
    if (skipped && skipped !== this.skipped) this.note(skipped);
    this.skipped = skipped;
  }

  setStep(step, summary) {
    this.step.value = step;
    this.drawMetric();
    const { check, missing } = summary;
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
    this.page.go({ prompt: Math.floor(row / size), completion: row % size, token, tab: "read" });
  }

  drawMetric() {
    const points = this.page.curves[this.metric.value];
    this.sparkline.replaceChildren();
    if (!points) return;
    const { picture, value } = curve(this.metric.value, points, this.page.state.step, (step) =>
      this.goNear(step),
    );
    this.sparkline.append(picture, h("b", {}, show(value)));
  }

  goNear(step) {
    const near = this.page.steps.reduce((a, b) =>
      Math.abs(b - step) < Math.abs(a - step) ? b : a,
    );
    this.page.go({ step: near });
  }

  setGroup(group, element) {
    this.prompt.replaceChildren(
      h("summary", {}, `Prompt ${group.group + 1} of ${this.page.summary.groups}`),
      h("pre", { dir: "auto" }, group.prompt),
    );
    this.completions.replaceChildren(element);
    const [first] = group.completions;
    this.colourRow.hidden = !first?.hasTokens;
    this.colours.value.disabled = !first?.values;
    this.colours.gap.disabled = !first?.logprobs_ref;
  }

  setColour(colour) {
    for (const [name, button] of Object.entries(this.colours)) {
      button.setAttribute("aria-pressed", String(name === colour));
    }
  }

  setTab(tab) {
    for (const [name, button] of Object.entries(this.tabs)) {
      button.setAttribute("aria-selected", String(name === tab));
      this.panels[name].hidden = name !== tab;
    }
    this.element.dataset.tab = tab;
    this.page.controls.element.classList.toggle("hidden", !["read", "modes"].includes(tab));
  }

  // --- a run that is still training ------------------------------------------------------------

  /** New steps appear in the list; what is being read stays, unless "follow latest" is on. */
  async look() {
    const { page } = this;
    if (!page.steps || document.hidden || this.looking) return;
    this.looking = true;
    const query = { run: page.state.run };
    const steps = await page.attempt(() => ask(page.server, "list_steps", query));
    if (steps && query.run === page.state.run) await this.update(steps, query);
    this.looking = false;
  }

  async update(steps, query) {
    const { page } = this;
    const listed = JSON.stringify(steps);
    if (listed !== this.listed) {
      this.listed = listed;
      const answer = await page.attempt(() => ask(page.server, "get_curves", query));
      page.curves = answer?.curves ?? page.curves;
      page.setSteps(steps);
      this.drawMetric();
    }
    const latest = page.steps.at(-1);
    if (this.follow.checked && latest !== page.state.step)
      await page.go({ step: latest, token: -1 });
  }
}

function badgeOf(check) {
  if (check.state === "verified") {
    return {
      state: "verified",
      text: "✓ verified",
      title: "The saved advantages are those of assign_credit under the saved configuration",
    };
  }
  if (check.state === "impossible")
    return { state: "impossible", text: "not verifiable", title: check.reason };
  const size = check.max_difference === null ? "unbounded" : show(check.max_difference);
  return {
    state: "differs",
    text: `differs by ${size}`,
    title:
      `${check.column} differ most at completion row ${check.row}, token ${check.token + 1}; ` +
      `${check.segments_moved} tokens lie in other segments. Click to go there.`,
  };
}
