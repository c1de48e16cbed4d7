// The reader: what is open, what is shown, and in which order things are asked and drawn.
//
//   address → run → step (summary, check) → group (texts, arrays) → the step's credit inputs
//   settings → credit.js → class names, strips, panel; when they rest → Python checks

import { tokenTitle } from "./completion.js";
import { Controls, changeLine, compare } from "./controls.js";
import { assignCredit, decompose, prepareStep } from "./credit.js";
import { ask, startsSegment, unpack, unpackGroup, unpackInputs } from "./data.js";
import { detailPanel, legend, spoken, tokenFacts } from "./detail.js";
import { debounce, show } from "./dom.js";
import { Frame } from "./frame.js";
import { listen } from "./keyboard.js";
import { Reader } from "./reader.js";
import { COLOURS } from "./scale.js";
import { readAddress, writeAddress } from "./state.js";

const cut = ({ segmentIds, advantages }, from, to) => ({
  segmentIds: segmentIds.subarray(from, to),
  advantages: advantages.subarray(from, to),
});

export class Page {
  constructor(root, server, { exported = false } = {}) {
    Object.assign(this, { root, server, exported });
    const { state, settings } = readAddress(location.hash);
    this.state = state;
    this.changes = settings; // only what differs from training
    this.credits = {}; // mode -> credit of the whole step, made on demand
    this.verdict = { state: "", text: "" };
    this.frame = new Frame(this, root);
    this.controls = new Controls(this.frame.controls, (change) => this.change(change));
    listen(root, this);
    this.checkSoon = debounce(350, () => this.check());
    this.explainSoon = debounce(120, () => this.explain()); // its tables take longer than a frame
    this.remember = debounce(100, () => this.writeAddress()); // 25 ms each: not once per frame
    addEventListener("hashchange", () => this.followAddress());
  }

  /** Runs `action`; an error becomes a note on the page, and the answer null. */
  async attempt(action) {
    try {
      return await action();
    } catch (error) {
      this.frame.note(error.message);
      return null;
    }
  }

  /** The run of the address, or the newest. */
  async openRun(run = this.state.run) {
    const steps = await this.attempt(() => ask(this.server, "list_steps", { run }));
    if (!steps) return;
    [this.state.run, this.steps] = [steps.run, steps.steps];
    this.frame.setSteps(steps);
    if (!this.steps.length) return this.frame.note("This run has no readable step.");
    const known = this.steps.includes(this.state.step);
    await this.openStep(known ? this.state.step : this.steps.at(-1));
  }

  /** A later call overtakes an earlier one, whose answers are dropped. */
  async openStep(step) {
    const request = (this.stepRequest = (this.stepRequest ?? 0) + 1);
    this.state.step = step;
    this.frame.element.setAttribute("aria-busy", "true");
    const summary = await this.attempt(() => ask(this.server, "get_step", this.place));
    if (request !== this.stepRequest) return;
    this.frame.element.setAttribute("aria-busy", "false");
    if (!summary) return this.frame.showNothing();
    Object.assign(this, { summary, step: null, credits: {} });
    this.frame.setStep(step, summary);
    if (!summary.groups) return this.frame.note("This step holds no completions.");
    // without a place in the address: the group with the widest rewards, its largest |A|
    if (this.state.prompt < 0) Object.assign(this.state, summary.best);
    this.state.prompt = Math.min(this.state.prompt, summary.groups - 1);
    await this.openGroup();
    if (request !== this.stepRequest) return;
    if (summary.in_browser && this.recomputable) await this.loadInputs(request);
  }

  async loadInputs(request) {
    const answer = await this.attempt(() => ask(this.server, "get_credit_inputs", this.place));
    if (!answer || request !== this.stepRequest) return;
    Object.assign(this, { step: prepareStep(unpackInputs(answer)), credits: {} });
    this.apply();
  }

  async openGroup() {
    const request = (this.groupRequest = (this.groupRequest ?? 0) + 1);
    const query = { ...this.place, group: this.state.prompt };
    const answer = await this.attempt(() => ask(this.server, "get_group", query));
    if (!answer || request !== this.groupRequest) return;
    this.group = unpackGroup(answer);
    this.served = null;
    const most = this.group.completions.length - 1;
    this.state.completion = Math.max(0, Math.min(this.state.completion, most));
    const length = this.group.completions[this.state.completion]?.length ?? 0;
    if (this.state.token >= length) this.state.token = -1;
    this.reader = new Reader(this.group, this);
    this.frame.setGroup(this.group, this.reader.element);
    this.apply();
    this.focus(this.state.completion, this.state.token, false);
  }

  /** Files without tokens, and numbers that assign_credit refuses, are shown as they are. */
  get recomputable() { return this.summary.check.state !== "impossible"; }

  get place() { return { run: this.state.run, step: this.state.step }; }

  /** Moves to another step, prompt, completion or token, loading only what changes. */
  async go(place, record = true) {
    const { state } = this;
    const before = { ...state };
    Object.assign(state, place);
    const moved = (name) => this.state[name] !== before[name];
    const opened = ["run", "step", "prompt"].some(moved);
    if (opened && record) history.pushState(null, "", this.addressNow()); // for Back
    const unknown = moved("step") && !this.steps.includes(this.state.step); // saved since
    if (moved("run") || unknown) await this.openRun(this.state.run);
    else if (moved("step")) await this.openStep(this.state.step);
    else if (moved("prompt")) await this.openGroup();
    else if (moved("completion") || moved("token")) this.focus(state.completion, state.token);
    this.remember();
  }

  /** Back, a link, or an address edited by hand. */
  followAddress() {
    if (location.hash === this.address || !this.steps) return;
    const { state, settings } = readAddress(location.hash);
    if (state.tab && state.tab !== "read") return;
    this.changes = settings;
    this.credits = {};
    const place = { ...state, run: state.run || this.state.run };
    if (place.step < 0) place.step = this.steps.at(-1);
    const stays = place.run === this.state.run && place.step === this.state.step;
    if (place.prompt < 0 && stays) Object.assign(place, this.summary?.best);
    this.go(place, false).then(() => this.group && this.apply());
  }

  addressNow() {
    return (this.address = writeAddress(this.state, this.settings, this.summary?.config));
  }

  writeAddress() {
    const { tab } = readAddress(location.hash).state; // another may have been opened meanwhile
    const isHere = this.root.offsetParent && ["", "read"].includes(tab);
    if (isHere) history.replaceState(null, "", this.addressNow());
  }

  get settings() { return { ...this.summary?.config, ...this.changes }; }

  get changed() {
    const differs = ([name, value]) => value !== this.summary?.config?.[name];
    return Object.entries(this.changes).some(differs) || this.state.mode !== "spo";
  }

  /** New settings; null returns to training. Drawn once per frame, whatever the event rate. */
  change(change) {
    const { mode, ...settings } = change ?? { mode: "spo" };
    if (mode) this.state.mode = mode;
    this.changes = change ? { ...this.changes, ...settings } : {};
    this.credits = {};
    this.served = null;
    cancelAnimationFrame(this.scheduled);
    this.scheduled = requestAnimationFrame(() => this.apply(this.explainSoon));
  }

  /** Credit of the whole step in one mode, under the current settings. */
  stepCredit(mode) {
    return (this.credits[mode] ??= assignCredit(this.step, { ...this.settings, mode }));
  }

  /** What one completion shows: training's credit until a setting differs from training's. */
  creditOf(completion) {
    if (!this.changed) return completion.saved;
    if (!this.step) return this.served?.[completion.completion] ?? completion.saved;
    const { offsets } = this.step;
    const { row } = completion;
    return cut(this.stepCredit(this.state.mode), offsets[row], offsets[row + 1]);
  }

  get cut() {
    if (this.changed && this.step) return this.stepCredit(this.state.mode).cut;
    return this.changed ? (this.servedCut ?? null) : (this.summary?.cut ?? null);
  }

  paint() {
    const colour = COLOURS[this.state.colour];
    const { scales, percentile } = this.summary;
    const end = scales[this.state.colour] ?? 0;
    const scale = this.reader.paint(colour, (completion) => this.creditOf(completion), end);
    this.frame.legend.replaceChildren(...legend(colour, scale, end ? percentile : null));
  }

  /** Draws everything that depends on settings or colour. */
  apply(explain = () => this.explain()) {
    if (!this.reader) return;
    this.paint();
    this.frame.setColour(this.state.colour, this.group);
    const recompute = this.recomputable && (!this.exported || this.step !== null);
    const cut = !this.step?.boundaries; // the browser knows the entropy rule only
    const can = { critic: this.summary.has_values, recompute, cut };
    this.controls.set(this.state.mode, this.settings, this.changed, can);
    if (!this.exported) this.verdict = { state: "waiting", text: "…" };
    explain();
    this.remember();
    if (this.changed && !this.exported) this.checkSoon();
  }

  /** What changed against training, and where the current segment's advantage comes from. */
  explain() {
    this.sayChange();
    this.showDetail();
  }

  sayChange() {
    const { status } = this.controls;
    if (!this.changed) return status.replaceChildren("as trained");
    const change = compare(this.group.completions, (c) => this.creditOf(c), (c) => c.saved);
    status.replaceChildren(...changeLine(change, this.verdict));
  }

  /** Python's assign_credit on the same settings; without the step in the browser, the answer. */
  async check() {
    if (!this.changed || !this.recomputable) return;
    const request = (this.checkRequest = (this.checkRequest ?? 0) + 1);
    const settings = { ...this.changes, mode: this.state.mode };
    const query = { ...this.place, group: this.group.group, settings };
    const answer = await this.attempt(() => ask(this.server, "recompute", query));
    if (!answer || request !== this.checkRequest || !this.changed) return;
    const segmentIds = unpack(answer.segment_ids, Int32Array);
    const credit = { segmentIds, advantages: unpack(answer.advantages) };
    let to = 0;
    const slices = this.group.completions.map(({ length }) => cut(credit, to, (to += length)));
    if (this.step) this.verdict = this.agreement(slices);
    else {
      [this.served, this.servedCut] = [slices, answer.cut];
      this.verdict = { state: "verified", text: "computed by Python" };
      this.paint();
    }
    this.sayChange();
  }

  agreement(slices) {
    const theirs = ({ completion }) => slices[completion];
    const found = compare(this.group.completions, (c) => this.creditOf(c), theirs);
    const moved = found.split + found.merged;
    if (found.worst <= 1e-5 && !moved) return { state: "verified", text: "✓ checked by Python" };
    const text = `Python differs: ${show(found.worst)}, ${moved} boundaries elsewhere`;
    return { state: "differs", text };
  }

  point(index, at, span) {
    const completion = this.group.completions[index];
    const facts = tokenFacts(completion, this.creditOf(completion), at, this.cut);
    span.title = [[tokenTitle(completion, at)], ...facts].map((pair) => pair.join(": ")).join("\n");
  }

  /** Makes a token the current one; `take` also gives it the keyboard and reads it aloud. */
  focus(index, at, take = true) {
    Object.assign(this.state, { completion: index, token: at });
    const completion = this.group.completions[index];
    const credit = this.creditOf(completion);
    this.reader.focus(index, at, credit, take);
    this.showDetail();
    if (take && at >= 0) this.frame.live.textContent = spoken(completion, credit, at, this.cut);
    this.remember();
  }

  showDetail() {
    const completion = this.group.completions[this.state.completion];
    if (!completion?.hasTokens) return this.frame.detail.replaceChildren();
    const { state, step } = this;
    const at = Math.min(state.token, completion.length - 1);
    const usable = step?.values && state.mode !== "grpo" && at >= 0 && step.inLoss[completion.row];
    const credit = usable && this.stepCredit(state.mode);
    const parts = usable ? decompose(step, credit, this.settings, completion.row) : null;
    const pick = (token) => this.focus(this.state.completion, token);
    const shown = this.creditOf(completion);
    const panel = detailPanel(completion, shown, at, this.cut, parts, pick);
    this.frame.detail.replaceChildren(...panel);
  }

  setColour(colour) {
    this.state.colour = colour;
    this.apply();
  }

  moveToken(by) {
    const { length } = this.group.completions[this.state.completion];
    const to = Math.max(0, Math.min(length - 1, this.state.token + by));
    if (length) this.focus(this.state.completion, to);
  }

  moveSegment(by) {
    const completion = this.group.completions[this.state.completion];
    const { segmentIds } = this.creditOf(completion);
    let at = this.state.token + by;
    while (at > 0 && at < completion.length && !startsSegment(segmentIds, at)) at += by;
    if (at < completion.length) this.focus(this.state.completion, Math.max(0, at));
  }

  moveCompletion(by) {
    const to = this.group.completions[this.state.completion + by];
    if (to) this.focus(this.state.completion + by, Math.min(this.state.token, to.length - 1));
  }

  movePrompt(by) {
    const prompt = this.state.prompt + by;
    if (prompt >= 0 && prompt < this.summary.groups) this.go({ prompt, completion: 0, token: -1 });
  }

  moveStep(by) {
    const step = this.steps[this.steps.indexOf(this.state.step) + by];
    if (step !== undefined) this.go({ step });
  }
}
