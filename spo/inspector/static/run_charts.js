// The charts of the run in an exported file; uPlot, whose script stands before this one, draws them.
import { h, show } from "./dom.js";

/** One chart for each {title, steps, lines: {name: numbers}}; the cursor, which all share, starts at
 * the step that the file shows. */
export function drawCharts(element, charts, { step, colours }) {
  const width = Math.min(440, element.clientWidth - 32);
  const [ink, line] = ["color", "border-top-color"].map((name) => getComputedStyle(element)[name]);
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const value = (_, x) => show(x);
  for (const { title, steps, lines } of charts) {
    const names = Object.keys(lines);
    const look = (label, i) => ({ label, stroke: colours[i], width: 1.5, spanGaps: true, value });
    const series = [{ label: "step" }, ...names.map(look)];
    const place = h("figure", {}, h("figcaption", {}, title));
    element.append(place);
    const rest = { axes: [axis, axis], cursor: { sync: { key: "run" }, drag: { x: false } } };
    const ready = (chart) => chart.setCursor({ left: chart.valToPos(step, "x"), top: 0 });
    Object.assign(rest, { scales: { x: { time: false } }, hooks: { ready: [ready] } });
    new uPlot({ width, height: 190, series, ...rest }, [steps, ...Object.values(lines)], place);
  }
}
