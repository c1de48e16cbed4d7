// Every number of one token and its segment, and where the segment's advantage comes from.

import { tokenTitle } from "./completion.js";
import { startsSegment } from "./data.js";
import { h, show, signed, visible } from "./dom.js";
import { referencePanel } from "./reference.js";
import { colourClass } from "./scale.js";

/** First token and end of the segment that token `at` is in. */
export function segmentSpan(segmentIds, at) {
  let [start, stop] = [at, at + 1];
  while (start > 0 && segmentIds[start - 1] === segmentIds[at]) start--;
  while (stop < segmentIds.length && segmentIds[stop] === segmentIds[at]) stop++;
  return { start, stop };
}

/** [name, number] pairs; `credit` is what is shown, completion.saved what training used. */
export function tokenFacts(completion, credit, at, cut) {
  const { saved } = completion;
  const { start, stop } = segmentSpan(credit.segmentIds, at);
  const boundary = at > 0 && startsSegment(credit.segmentIds, at) && cut !== null;
  const relation = boundary ? ` ≥ cut ${show(cut)} → starts a segment` : "";
  const isTool = completion.actions && !completion.actions[at];
  const facts = [
    ["token", `${at + 1} of ${completion.length} · id ${completion.token_ids[at]}`],
    ...(isTool ? [["from", "a tool or the environment: read, never trained on"]] : []),
    ["entropy", `H = ${show(completion.entropies[at])}${relation}`],
    ["log-prob", show(completion.logprobs[at])],
  ];
  const gap = completion.logprobs_ref && completion.logprobs[at] - completion.logprobs_ref[at];
  if (completion.logprobs_ref) facts.push(["minus reference", signed(gap)]);
  if (completion.values) facts.push(["value V", show(completion.values[at])]);
  for (const [name, values] of completion.sources) facts.push([`· ${name}`, signed(values[at])]);
  if (completion.token_rewards[at]) facts.push(["reward", signed(completion.token_rewards[at])]);
  if (completion.returns) facts.push(["return", show(completion.returns[at])]);
  facts.push(["segment", `${credit.segmentIds[at] + 1} · tokens ${start + 1}–${stop}`]);
  facts.push(["advantage", signed(credit.advantages[at])]);
  if (credit !== saved) facts.push(["in training", signed(saved.advantages[at])]);
  return facts;
}

/** What a screen reader says when a token gets the focus. */
export function spoken(completion, credit, at, cut) {
  const facts = tokenFacts(completion, credit, at, cut).map((pair) => pair.join(" "));
  return `“${tokenTitle(completion, at)}”. ${facts.join(", ")}.`;
}

/** The panel for the focused token. `parts` are the segments of decompose(), null without. */
export function detailPanel(completion, credit, at, cut, parts, onPick) {
  const title = `Completion ${completion.completion + 1}`;
  const hint = "Point at a token, or press → to walk.";
  if (at < 0) return [h("h3", {}, title), h("p", { class: "hint" }, hint)];
  const facts = tokenFacts(completion, credit, at, cut).slice(1);
  const nodes = [
    h("h3", {}, `${title} · token ${at + 1}`),
    h("p", { class: "token-text" }, tokenTitle(completion, at)),
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    ...referencePanel(completion, at),
  ];
  if (!parts) return nodes;
  const index = parts.findIndex((part) => at < part.stop);
  const part = parts[index];
  const used = `normalised over the step, as the loss used it: ${signed(part.advantage)}`;
  const isRaw = part.advantage === part.raw;
  return [
    ...nodes,
    h("h3", {}, `Where segment ${index + 1}'s advantage comes from`),
    waterfall(part),
    isRaw ? "" : h("p", { class: "hint" }, used),
    segmentTable(completion, parts, index, isRaw, onPick),
  ];
}

/** R_k + γV_{k+1} − V_k = δ_k, + carried = A_k, as bars that start where the last one ended. */
function waterfall(part) {
  const bars = [
    ["R", 0, part.reward],
    ["+ γV next", part.reward, part.reward + part.gammaNext],
    ["− V", part.reward + part.gammaNext, part.delta],
    ["= δ", 0, part.delta, true],
    ["+ carried γλA", part.delta, part.raw],
    ["= A raw", 0, part.raw, true],
  ];
  const ends = bars.flatMap(([, from, to]) => [from, to]);
  const low = Math.min(...ends);
  const percent = 100 / Math.max(Math.max(...ends) - low, 1e-9);
  const rows = bars.map(([name, from, to, sum]) => {
    const kind = `bar${to < from ? " negative" : ""}${sum ? " sum" : ""}`;
    const left = (Math.min(from, to) - low) * percent;
    const style = `left: ${left}%; width: ${Math.abs(to - from) * percent}%`;
    const track = h("span", { class: "track" }, h("i", { class: kind, style }));
    return h("li", {}, name, track, h("b", {}, signed(to - from)));
  });
  return h("ol", { class: "waterfall" }, rows);
}

const TABLE_REACH = 40;

/** The segments around one, each a line to click; raw numbers are in units of the reward. */
function segmentTable(completion, parts, index, isRaw, onPick) {
  const head = ["#", "text", "R", "γV′−V", "δ", "carried", "A", ...(isRaw ? [] : ["A"])];
  const spans = [h("td", { colspan: 2 }), h("th", { colspan: 5 }, "raw, in units of reward")];
  const units = h("tr", {}, spans, isRaw ? null : h("th", {}, "normal."));
  const shown = parts.slice(Math.max(0, index - TABLE_REACH), index + TABLE_REACH + 1);
  const rows = shown.map((part) => {
    const { start, stop, reward, gammaNext, value, delta, carried, raw, advantage } = part;
    const from = start ? completion.ends[start - 1] : 0;
    const text = visible(completion.text.slice(from, completion.ends[stop - 1]));
    const numbers = [reward, gammaNext - value, delta, carried, raw, ...(isRaw ? [] : [advantage])];
    const first = h("td", {}, String(parts.indexOf(part) + 1));
    const words = h("td", { class: "snippet", title: text }, text.slice(0, 40));
    const cells = numbers.map((x) => h("td", {}, signed(x, 2)));
    const kind = part === parts[index] ? "current" : "";
    return h("tr", { class: kind, onclick: () => onPick(start) }, first, words, cells);
  });
  const names = h("tr", {}, head.map((x) => h("th", {}, x)));
  const body = [h("thead", {}, units, names), h("tbody", {}, rows)];
  const look = { class: "table", tabindex: 0, role: "region", "aria-label": "Segments" };
  return h("div", look, h("table", { class: "segments" }, body));
}

/** Seven of the fifteen colours with their numbers, and what lies beyond them. */
export function legend({ label, unit }, scale, percentile) {
  const isDiverging = scale.low < 0 && scale.high > 0;
  const ends = isDiverging ? [-1, 1] : scale.low < 0 ? [-1, 0] : [0, 1];
  const steps = Array.from({ length: 7 }, (_, i) => ends[0] + ((ends[1] - ends[0]) * i) / 6);
  const cells = steps.map((x) => h("i", { class: `c${colourClass(x * scale.reach, scale)}` }));
  const [less, more] = scale.beyond ? ["≤ ", "≥ "] : ["", ""];
  const where = percentile ? ` (ends at the ${percentile}th percentile of the step)` : "";
  const note = scale.beyond && h("span", {}, `${scale.beyond} tokens beyond${where}`);
  const end = (x, sign, of = "") => h("span", {}, `${x ? sign : ""}${show(x * scale.reach)}${of}`);
  const colours = h("span", { class: "cells" }, cells);
  return [label, end(ends[0], less), colours, end(ends[1], more, ` ${unit}`), note || ""];
}
