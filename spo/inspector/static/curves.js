// Training curves from metrics.jsonl, as small SVGs; a click opens the nearest saved step.

import { h, show, svg } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 56;

/** One curve: points [[step, value], …], the step being read marked. */
export function curve(name, points, current, onStep) {
  const steps = points.map(([step]) => step);
  const values = points.map(([, value]) => value);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (step) => 2 + ((WIDTH - 4) * (step - first)) / Math.max(last - first, 1e-9);
  const y = (value) => HEIGHT - 4 - ((HEIGHT - 8) * (value - low)) / Math.max(high - low, 1e-9);
  const path = points.map(
    ([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`,
  );
  const nearest = points.reduce((a, b) =>
    Math.abs(b[0] - current) < Math.abs(a[0] - current) ? b : a,
  );
  const picture = svg(
    "svg",
    {
      class: "curve",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `${name} from ${show(values[0])} to ${show(values.at(-1))}`,
      onclick: (event) => {
        const box = picture.getBoundingClientRect();
        onStep(first + ((event.clientX - box.left) / box.width) * (last - first));
      },
    },
    svg("path", { class: "now", d: `M${x(nearest[0]).toFixed(1)} 0V${HEIGHT}` }),
    svg("path", { class: "line", d: path.join("") }),
  );
  return { picture, value: nearest[1], low, high };
}

/** All curves, each with its range and the value at the current step. */
export function curveGrid(curves, current, onStep) {
  const names = Object.keys(curves).sort();
  if (!names.length) return h("p", { class: "hint" }, "This run has no metrics.jsonl.");
  return h(
    "div",
    { class: "curve-grid" },
    names.map((name) => {
      const { picture, value, low, high } = curve(name, curves[name], current, onStep);
      return h(
        "figure",
        {},
        h("figcaption", {}, h("span", { title: name }, name), h("b", {}, show(value))),
        picture,
        h("small", {}, `${show(low)} … ${show(high)}`),
      );
    }),
  );
}
