// Strips under a completion: entropy, value and advantage over the token position. Own SVG.

import { h, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 26;

export class Strips {
  /** @param onPick called with the token that was clicked */
  constructor(completion, onPick) {
    this.completion = completion;
    this.rows = {};
    const names = completion.values ? ["entropy", "value", "advantage"] : ["entropy", "advantage"];
    this.element = h("div", { class: "strips" }, names.map((name) => this.addRow(name, onPick)));
    this.draw("entropy", completion.entropies);
    if (completion.values) this.draw("value", completion.values);
  }

  addRow(name, onPick) {
    const paths = {
      area: svg("path", { class: `area ${name}` }),
      below: svg("path", { class: `area ${name} below` }),
      cuts: svg("path", { class: "cuts" }),
      marker: svg("path", { class: "marker" }),
    };
    const onclick = (event) => {
      const box = picture.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      onPick(Math.min(this.completion.length - 1, Math.floor(share * this.completion.length)));
    };
    const label = `${name} over the position in the completion`;
    const look = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
    const picture = svg("svg", { ...look, "aria-label": label, onclick }, Object.values(paths));
    this.rows[name] = paths;
    return h("div", { class: "strip" }, h("span", {}, name), picture);
  }

  /** Areas above and below zero, the extreme of each pixel column. */
  draw(name, numbers) {
    let [reach, lowest] = [1e-9, 0];
    for (const x of numbers) {
      reach = Math.max(reach, Math.abs(x));
      lowest = Math.min(lowest, x);
    }
    const zero = lowest < 0 ? HEIGHT / 2 : HEIGHT - 1;
    const unit = (lowest < 0 ? HEIGHT / 2 : HEIGHT - 2) / reach;
    const columns = Math.min(WIDTH, numbers.length);
    let [above, below] = [`M0 ${zero}`, `M0 ${zero}`];
    for (let column = 0; column < columns; column++) {
      const to = Math.floor(((column + 1) * numbers.length) / columns);
      let [high, low] = [0, 0];
      for (let at = Math.floor((column * numbers.length) / columns); at < to; at++) {
        if (numbers[at] > high) high = numbers[at];
        else if (numbers[at] < low) low = numbers[at];
      }
      const x0 = ((column * WIDTH) / columns).toFixed(1);
      const x1 = (((column + 1) * WIDTH) / columns).toFixed(1);
      const [top, bottom] = [(zero - high * unit).toFixed(1), (zero - low * unit).toFixed(1)];
      above += `L${x0} ${top}L${x1} ${top}`;
      below += `L${x0} ${bottom}L${x1} ${bottom}`;
    }
    this.rows[name].area.setAttribute("d", `${above}L${WIDTH} ${zero}Z`);
    this.rows[name].below.setAttribute("d", lowest < 0 ? `${below}L${WIDTH} ${zero}Z` : "");
  }

  /** Redraws what the settings change: advantages, and boundaries as ticks on the entropy strip. */
  update({ advantages, segmentIds }) {
    this.draw("advantage", advantages);
    const { length } = this.completion;
    const columns = new Set();
    for (let at = 1; at < length; at++) {
      if (segmentIds[at] !== segmentIds[at - 1]) columns.add(Math.round((at * WIDTH) / length));
    }
    const ticks = Array.from(columns, (column) => `M${column} 0V${HEIGHT}`);
    this.rows.entropy.cuts.setAttribute("d", ticks.join(""));
  }

  mark(at) {
    const x = (((at + 0.5) * WIDTH) / this.completion.length).toFixed(1);
    const d = at < 0 ? "" : `M${x} 0V${HEIGHT}`;
    for (const row of Object.values(this.rows)) row.marker.setAttribute("d", d);
  }
}
