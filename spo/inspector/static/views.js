// The tabs beside "Completions": three modes, the step, the training, the search.

import { h } from "./dom.js";
import { curveGrid } from "./curves.js";
import { HistoryView } from "./history.js";
import { Reader } from "./reader.js";
import { COLOURS, makeScale } from "./scale.js";
import { SearchView } from "./searchview.js";
import { stepView } from "./stepview.js";

export const TABS = {
  read: "Completions",
  modes: "GRPO · SPO · PPO",
  step: "Step",
  training: "Training",
  search: "Search",
};
const MODE_TITLES = {
  grpo: "GRPO: per completion",
  spo: "SPO: per segment",
  ppo: "PPO: per token",
};

export class Views {
  constructor(page) {
    this.page = page;
    this.search = new SearchView(page);
    this.history = new HistoryView(page);
  }

  /** Draws a tab; each but "read" is made when it is opened. */
  show(tab) {
    const { page } = this;
    page.state.tab = TABS[tab] ? tab : "read";
    page.frame.setTab(page.state.tab);
    const panel = page.frame.panels[page.state.tab];
    if (tab === "modes") this.showModes(panel);
    if (tab === "step") panel.replaceChildren(stepView(page.summary, (bin) => this.openBin(bin)));
    if (tab === "training") this.showTraining(panel);
    if (tab === "search") panel.replaceChildren(this.search.element);
  }

  settingsChanged() {
    if (this.page.state.tab === "modes") this.showModes(this.page.frame.panels.modes);
  }

  /** The current completion three times on one scale; built once, then only repainted. */
  showModes(panel) {
    const { page } = this;
    if (!page.step) {
      this.shown = null;
      const hint = page.summary.in_browser
        ? "Loading the step…"
        : "Needs the whole step in the browser.";
      return panel.replaceChildren(h("p", { class: "hint" }, hint));
    }
    const completion = page.group.completions[page.state.completion];
    if (this.shown !== completion) this.buildModes(panel, completion);
    const creditOf = (mode) => page.creditOf(completion, mode);
    const scale = makeScale(this.columns.map(({ mode }) => creditOf(mode).advantages));
    for (const { mode, reader } of this.columns) {
      reader.paint(COLOURS.advantage, () => creditOf(mode), scale);
    }
  }

  buildModes(panel, completion) {
    const { page } = this;
    const on = {
      point: () => {},
      leave: () => {},
      pick: (_, at) => page.focus(page.state.completion, at, false),
    };
    const modes = page.summary.has_values ? ["grpo", "spo", "ppo"] : ["grpo", "spo"];
    this.shown = completion;
    this.columns = modes.map((mode) => {
      const reader = new Reader({ completions: [completion] }, on, {
        foldable: false,
        compare: false,
      });
      return { mode, reader };
    });
    panel.replaceChildren(
      h(
        "div",
        { class: "columns modes" },
        this.columns.map(({ mode, reader }) =>
          h("section", { "data-mode": mode }, h("h3", {}, MODE_TITLES[mode]), reader.element),
        ),
      ),
    );
  }

  showTraining(panel) {
    const { page } = this;
    const grid = curveGrid(page.curves, page.state.step, (step) => page.frame.goNear(step));
    panel.replaceChildren(this.history.element, h("h3", {}, "Curves"), grid);
    if (page.summary.config) this.history.open();
    else this.history.progress.textContent = "This file holds no tokens to align.";
  }

  openBin(bin) {
    this.page.go({ tab: "search" });
    this.search.start(bin, "step");
  }
}
