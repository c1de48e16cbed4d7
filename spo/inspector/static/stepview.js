// A whole step: is the critic calibrated, and how many segments do completions have?

import { h, show, svg } from "./dom.js";

/** @param onBin called with {value_min, value_max} of a bin of the calibration plot */
export function stepView(summary, onBin) {
  const facts = [
    ["completions", summary.completions],
    ["prompts", summary.groups],
    ["tokens", summary.tokens],
    ["mean reward", show(summary.reward_mean)],
    ["unscorable", summary.unscorable],
    ["truncated", summary.truncated],
    ["entropy cut", summary.cut === null ? "none" : `H ≥ ${show(summary.cut)}`],
    ["run id", summary.run_id || "–"],
    ...Object.entries(summary.config ?? {}).map(([name, value]) => [name, String(value)]),
  ];
  return h(
    "div",
    { class: "step-view" },
    h(
      "section",
      {},
      h("h3", {}, "This step"),
      h(
        "dl",
        { class: "facts" },
        facts.map(([name, x]) => [h("dt", {}, name), h("dd", {}, String(x))]),
      ),
    ),
    h(
      "section",
      {},
      h("h3", {}, "Is the critic calibrated?"),
      summary.calibration.length
        ? calibrationPlot(summary.calibration, onBin)
        : h("p", { class: "hint" }, "These rollouts have no values: no critic was trained."),
    ),
    h(
      "section",
      {},
      h("h3", {}, "Segments per completion"),
      summary.config
        ? histogram(summary.histogram)
        : h("p", { class: "hint" }, "This file holds no segments."),
    ),
  );
}

const SIZE = 300;
const MARGIN = 34;

/** Mean V at segment starts against the mean final reward of the same segments. */
function calibrationPlot(bins, onBin) {
  const numbers = bins.flatMap((bin) => [bin.value, bin.reward]);
  const low = Math.min(0, ...numbers);
  const width = Math.max(Math.max(...numbers) - low, 1e-6);
  const x = (value) => MARGIN + ((SIZE - 2 * MARGIN) * (value - low)) / width;
  const y = (value) => SIZE - x(value);
  const most = Math.max(...bins.map((bin) => bin.count));
  const picture = svg("svg", { class: "plot", viewBox: `0 0 ${SIZE} ${SIZE}`, role: "group" });
  picture.append(
    svg("path", {
      class: "axis",
      d: `M${MARGIN} ${MARGIN / 2}V${SIZE - MARGIN}H${SIZE - MARGIN / 2}`,
    }),
    svg("path", {
      class: "diagonal",
      d: `M${x(low)} ${y(low)}L${x(low + width)} ${y(low + width)}`,
    }),
    svg("text", { x: SIZE / 2, y: SIZE - 4, "text-anchor": "middle" }, "V at segment starts"),
    svg(
      "text",
      { x: 10, y: SIZE / 2, transform: `rotate(-90 10 ${SIZE / 2})`, "text-anchor": "middle" },
      "final reward",
    ),
  );
  for (const end of [low, low + width]) {
    picture.append(
      svg("text", { x: x(end), y: SIZE - MARGIN + 12, "text-anchor": "middle" }, show(end, 2)),
      svg("text", { x: MARGIN - 4, y: y(end) + 4, "text-anchor": "end" }, show(end, 2)),
    );
  }
  for (const bin of bins) {
    const label = `V ${show(bin.low)} to ${show(bin.high)}: mean V ${show(bin.value)}, mean reward ${show(bin.reward)}, ${bin.count} segments`;
    const open = () => onBin({ value_min: bin.low, value_max: bin.high });
    picture.append(
      svg(
        "circle",
        {
          class: "bin",
          cx: x(bin.value),
          cy: y(bin.reward),
          r: 4 + 6 * Math.sqrt(bin.count / most),
          tabindex: 0,
          role: "button",
          "aria-label": label,
          onclick: open,
          onkeydown: (event) => event.key === "Enter" && open(),
        },
        svg("title", {}, `${label}. Click to list them.`),
      ),
    );
  }
  return picture;
}

function histogram(counts) {
  const first = Math.max(
    0,
    counts.findIndex((count) => count > 0),
  );
  const shown = counts.slice(first);
  const perBar = Math.ceil(shown.length / 40) || 1;
  const bars = [];
  for (let at = 0; at < shown.length; at += perBar) {
    const count = shown.slice(at, at + perBar).reduce((a, b) => a + b, 0);
    bars.push({ from: first + at, to: first + at + perBar - 1, count });
  }
  const most = Math.max(1, ...bars.map((bar) => bar.count));
  const width = (SIZE - MARGIN) / Math.max(1, bars.length);
  const picture = svg("svg", {
    class: "plot",
    viewBox: `0 0 ${SIZE} 160`,
    role: "img",
    "aria-label": "Histogram",
  });
  bars.forEach((bar, i) => {
    const height = (110 * bar.count) / most;
    const range = bar.from === bar.to ? `${bar.from}` : `${bar.from}–${bar.to}`;
    picture.append(
      svg(
        "rect",
        {
          class: "bar",
          x: MARGIN / 2 + i * width,
          y: 130 - height,
          width: Math.max(1, width - 2),
          height,
        },
        svg("title", {}, `${bar.count} completions with ${range} segments`),
      ),
    );
    if (i % Math.ceil(bars.length / 8) === 0) {
      picture.append(
        svg("text", { x: MARGIN / 2 + (i + 0.5) * width, y: 145, "text-anchor": "middle" }, range),
      );
    }
  });
  picture.append(svg("text", { x: MARGIN / 2, y: 12 }, `most: ${most} completions`));
  return picture;
}
