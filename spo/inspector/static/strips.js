// Strips under a completion: entropy, value and advantage over the token position. Own SVG.

import { h, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 26;
const LOOKS = { area: "area", below: "area below", cuts: "cuts", marker: "marker" };

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
    const paths = {};
    for (const [kind, look] of Object.entries(LOOKS)) paths[kind] = svg("path", { class: look });
    paths.area.classList.add(name);
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

  /** Areas above and below zero, the extremes of each pixel column. */
  draw(name, numbers) {
    const columns = Math.min(WIDTH, numbers.length);
    const [highs, lows] = [new Float32Array(columns), new Float32Array(columns)];
    for (let column = 0, at = 0; column < columns; column++) {
      for (const to = Math.floor(((column + 1) * numbers.length) / columns); at < to; at++) {
        if (numbers[at] > highs[column]) highs[column] = numbers[at];
        else if (numbers[at] < lows[column]) lows[column] = numbers[at];
      }
    }
    const low = Math.min(0, ...lows);
    const zero = low < 0 ? HEIGHT / 2 : HEIGHT - 1;
    const unit = (low < 0 ? HEIGHT / 2 : HEIGHT - 2) / Math.max(1e-9, -low, ...highs);
    const x = (column) => ((column * WIDTH) / columns).toFixed(1);
    const step = (end, i) => `V${(zero - end * unit).toFixed(1)}H${x(i + 1)}`;
    const path = (ends) => `M0 ${zero}${Array.from(ends, step).join("")}V${zero}Z`;
    this.rows[name].area.setAttribute("d", path(highs));
    this.rows[name].below.setAttribute("d", low < 0 ? path(lows) : "");
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
