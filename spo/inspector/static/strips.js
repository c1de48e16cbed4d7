// Strips under a completion: entropy, value and advantage over the token position. Own SVG.

import { svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 26;

export class Strips {
  /** @param onPick called with the token that was clicked */
  constructor(completion, onPick) {
    this.completion = completion;
    this.element = document.createElement("div");
    this.element.className = "strips";
    this.rows = {};
    for (const name of completion.values
      ? ["entropy", "value", "advantage"]
      : ["entropy", "advantage"]) {
      this.rows[name] = this.addRow(name, onPick);
    }
    this.draw("entropy", completion.entropies);
    if (completion.values) this.draw("value", completion.values);
  }

  addRow(name, onPick) {
    const area = svg("path", { class: `area ${name}` });
    const below = svg("path", { class: `area ${name} below` });
    const cuts = svg("path", { class: "cuts" });
    const marker = svg("path", { class: "marker" });
    const picture = svg(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `${name} over the position in the completion`,
        onclick: (event) => {
          const box = picture.getBoundingClientRect();
          const share = (event.clientX - box.left) / box.width;
          onPick(Math.min(this.completion.length - 1, Math.floor(share * this.completion.length)));
        },
      },
      area,
      below,
      cuts,
      marker,
    );
    const row = document.createElement("div");
    row.className = "strip";
    const label = document.createElement("span");
    label.textContent = name;
    row.append(label, picture);
    this.element.append(row);
    return { area, below, cuts, marker };
  }

  /** Areas above and below zero, the extreme of each pixel column. */
  draw(name, numbers) {
    let reach = 1e-9;
    let lowest = 0;
    for (const x of numbers) {
      reach = Math.max(reach, Math.abs(x));
      lowest = Math.min(lowest, x);
    }
    const zero = lowest < 0 ? HEIGHT / 2 : HEIGHT - 1;
    const unit = (lowest < 0 ? HEIGHT / 2 : HEIGHT - 2) / reach;
    const columns = Math.min(WIDTH, numbers.length);
    let above = `M0 ${zero}`;
    let below = above;
    for (let column = 0; column < columns; column++) {
      const from = Math.floor((column * numbers.length) / columns);
      const to = Math.floor(((column + 1) * numbers.length) / columns);
      let high = 0;
      let low = 0;
      for (let at = from; at < to; at++) {
        if (numbers[at] > high) high = numbers[at];
        else if (numbers[at] < low) low = numbers[at];
      }
      const x0 = ((column * WIDTH) / columns).toFixed(1);
      const x1 = (((column + 1) * WIDTH) / columns).toFixed(1);
      above += `L${x0} ${(zero - high * unit).toFixed(1)}L${x1} ${(zero - high * unit).toFixed(1)}`;
      below += `L${x0} ${(zero - low * unit).toFixed(1)}L${x1} ${(zero - low * unit).toFixed(1)}`;
    }
    this.rows[name].area.setAttribute("d", `${above}L${WIDTH} ${zero}Z`);
    this.rows[name].below.setAttribute("d", lowest < 0 ? `${below}L${WIDTH} ${zero}Z` : "");
  }

  /** Redraws what the settings change: advantages, and boundaries as ticks on the entropy strip. */
  update(credit) {
    this.draw("advantage", credit.advantages);
    const { length } = this.completion;
    let ticks = "";
    let lastColumn = -1;
    for (let at = 1; at < length; at++) {
      if (credit.segmentIds[at] === credit.segmentIds[at - 1]) continue;
      const column = Math.round((at * WIDTH) / length);
      if (column === lastColumn) continue;
      lastColumn = column;
      ticks += `M${column} 0V${HEIGHT}`;
    }
    this.rows.entropy.cuts.setAttribute("d", ticks);
  }

  mark(at) {
    const x = (((at + 0.5) * WIDTH) / this.completion.length).toFixed(1);
    for (const row of Object.values(this.rows)) {
      row.marker.setAttribute("d", at < 0 ? "" : `M${x} 0V${HEIGHT}`);
    }
  }
}
