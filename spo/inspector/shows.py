"""What each tab shows at a place: address -> values of Gradio components, by their names.

The address of the page is the only state. `show` answers an address with what changed; a tab that
is not open costs nothing.
"""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from gradio.components.plot import PlotData

from spo.inspector import charts, critic_charts, maps, tables
from spo.inspector.bounded import TooLarge, is_number
from spo.inspector.charts import Look, Spec
from spo.inspector.compare import diff_html, modes_html, steps_with
from spo.inspector.folder import EVALUATIONS, Folder
from spo.inspector.history import Histories, History, file_key
from spo.inspector.markup import completion_html, legend_html, link
from spo.inspector.notes import Notes
from spo.inspector.reading import count_groups, read_group, read_step, readable
from spo.inspector.search import MEASURES, Found, search_run
from spo.inspector.step import Step
from spo.inspector.turns import last_words
from spo.inspector.verdicts import verdicts, verdicts_html
from spo.inspector.views import best_place, group_rows, group_starts

Values = dict[str, Any]
TABS = {
    "run": "Run",
    "critic": "Critic",
    "hacking": "Hacking",
    "step": "Step",
    "read": "Reader",
    "search": "Search",
    "compare": "Compare",
}
BOUNDS = {
    f"{measure}_{end}": f"{measure[0]}{end}" for measure in MEASURES for end in ("min", "max")
}
"""Fields of a search -> their short names in the address: advantage_min -> amin."""
PHRASE_STEPS = 6
LEFT_COLUMN = 380
"""Width in px of what stands left of a run's charts on a wide window."""


@dataclass(frozen=True)
class Place:
    """An address, read; and the window it is shown in."""

    run: str
    tab: str
    step: int | None
    fields: dict[str, str]
    look: Look


class Shows:
    """The tabs of one folder."""

    def __init__(self, folder: Folder, notes: Notes | None = None):
        self.folder = folder
        self.histories = Histories(folder)
        self.notes = notes
        self.counted: dict[str, tuple] = {}  # run -> the files, phrases credited, blamed

    def place(self, client: str) -> Place:
        """What the browser said of itself -> a place; what cannot be read keeps its default."""
        try:
            said = json.loads(client)
        except (TypeError, ValueError, RecursionError):
            said = {}
        said = said if isinstance(said, dict) else {}
        fields = {key: x[-1] for key, x in parse_qs(str(said.get("hash") or "")).items()}
        runs = self.folder.runs()
        run = fields.get("run")
        if run not in runs:
            run = list(runs)[-1]
        steps = list(self.folder.steps(run).paths)
        asked = whole(fields.get("step"))
        step = steps[-1] if steps else None
        if asked is not None:  # charts know of steps that were not saved
            step = min(steps, key=lambda saved: abs(saved - asked), default=None)
        tab = fields.get("tab")
        if tab not in TABS:
            tab = "run" if len(steps) > 1 else "read"
        width = said.get("width")
        width = int(width) if is_number(width) and 200 < width < 6000 else 1280
        return Place(run, tab, step, fields, Look(min(width, 1680), said.get("dark") is True))

    def show(self, client: str) -> Iterator[Values]:
        """The values at an address; a search answers many times."""
        try:
            place = self.place(client)
            yield self.frame(place)
            match place.tab:
                case "run":
                    yield from self.run(place)
                case "critic":
                    yield self.critic(place)
                case "hacking":
                    yield self.hacking(place)
                case "step":
                    yield self.step(place)
                case "search":
                    yield from self.search(place)
                case "compare":
                    yield self.compare(place)
        except (ValueError, OSError) as error:
            yield {"note": note(str(error))}

    def frame(self, place: Place) -> Values:
        runs = list(self.folder.runs())
        others = [run for run in runs if run != place.run]
        overlay = [run for run in place.fields.get("with", "").split(",") if run in others]
        return {
            "run": gr.Dropdown(choices=runs, value=place.run, visible=len(runs) > 1),
            "overlay": gr.Dropdown(choices=others, value=overlay or None, visible=bool(others)),
            "average": width_of(place),
            "tabs": gr.Tabs(selected=place.tab),
            "note": "",
        }

    # --- run ------------------------------------------------------------------------------------

    def run(self, place: Place) -> Iterator[Values]:
        """Verdicts, charts and one completion at once; what reads more files after them."""
        overlay = [run for run in place.fields.get("with", "").split(",") if run]
        others = [run for run in overlay if run in self.folder.runs() and run != place.run]
        history = self.histories.get(place.run)
        found = verdicts(history)
        width = place.look.width - 60
        side = Look(width - LEFT_COLUMN if width >= 900 else width, place.look.dark)
        histories = [history, *(self.histories.get(run) for run in others)]
        yield {
            "verdicts": verdicts_html(found, history),
            "charts": plot(charts.run_charts(histories, found, side, width_of(place))),
            "sample": self.sample(place),
            "growing": gr.Timer(active=history.progress < 1),
        }
        wide = Look(width, place.look.dark)
        names = sorted(history.curves)
        metric = place.fields.get("metric")
        yield {
            "matrix": plot(maps.prompt_matrix(history, wide)),
            "credit_map": plot(maps.credit_map(history, wide)),
            "metric": gr.Dropdown(choices=names, value=metric if metric in names else None),
            "metric_chart": plot(charts.metric_chart(history, metric, wide, width_of(place)))
            if metric in names
            else plot(None),
        }
        credited, blamed = self.phrases(place.run)
        yield {"credited": credited, "blamed": blamed}

    def sample(self, place: Place) -> str:
        """The completion to begin with: the newest step's widest prompt, its largest |A|."""
        if place.step is None:
            return note("This run has no readable step.")
        path = self.folder.step_path(place.run, place.step)
        try:
            step = read_step(path)
        except TooLarge:
            step = read_group(path, 0).step
        except ValueError as error:  # one unreadable step harms only itself
            return note(str(error))
        if not len(step.rollouts):
            return note("This step holds no completions.")
        best = best_place(step)
        row = group_rows(step, best["prompt"]).start + best["completion"]
        title = link(
            f"Step {place.step}, prompt {best['prompt'] + 1}: open in the reader",
            run=place.run,
            tab="read",
            step=place.step,
            **best,
        )
        reward = step.rollouts.completion_rewards[row]
        asks = html.escape(last_words(step.rollouts.prompts[row], 110))
        return (
            f'<div class="spo small sample"><h3>{title}</h3><p class="hint">{asks}</p>'
            f"<p>reward {reward:.3g}</p>{completion_html(step, row)}{legend_html(step)}</div>"
        )

    def phrases(self, run: str) -> tuple[list, list]:
        """Those of a few steps of a run, spread evenly; counted again once these are others."""
        paths = list(self.folder.steps(run).paths.values())
        chosen = [paths[at] for at in charts.even_choice(len(paths), PHRASE_STEPS)]
        keys = tuple(file_key(path) for path in chosen)
        if self.counted.get(run, (None,))[0] != keys:
            self.counted[run] = (keys, *tables.phrases(readable(chosen)))
        return self.counted[run][1:]

    # --- critic, hacking ------------------------------------------------------------------------

    def critic(self, place: Place) -> Values:
        history = self.histories.get(place.run)
        line = line_at(history, place.step)
        spec = critic_charts.critic_charts(history, line, wide(place), width_of(place))
        if spec is None:
            words = note("This run has no critic: these rollouts have no values.")
            return {"critic_chart": plot(None), "misses": [], "note": words}
        return {"critic_chart": plot(spec), "misses": tables.worst_misses(history)}

    def hacking(self, place: Place) -> Values:
        history = self.histories.get(place.run)
        line = line_at(history, place.step)
        look, width = wide(place), width_of(place)
        try:
            odd = tables.odd_completions(read_step(self.folder.step_path(place.run, place.step)))
        except ValueError:
            odd = []  # too large or unreadable; the charts do not need it
        return {
            "hacking_chart": plot(critic_charts.hacking_charts(history, look, width)),
            "scatter": plot(critic_charts.length_scatter(history, line, look)),
            "odd": odd,
        }

    def completion_at(self, place: Place) -> tuple[Step, int]:
        """The completion that the reader shows, and the step or group that holds it."""
        path = self.folder.step_path(place.run, place.step)
        prompt, completion = (whole(place.fields.get(key)) for key in ("prompt", "completion"))
        if prompt is None or prompt < 0:
            best = best_place(read_step(path))
            prompt, completion = best["prompt"], best["completion"]
        found = read_group(path, prompt)
        rows = group_rows(found.step, found.index)
        return found.step, min(rows.start + max(completion or 0, 0), rows.stop - 1)

    # --- step -----------------------------------------------------------------------------------

    def step(self, place: Place) -> Values:
        steps = self.folder.steps(place.run)
        path = self.folder.step_path(place.run, place.step)
        try:
            rows = tables.prompt_rows(read_step(path))
        except TooLarge:
            groups = count_groups(path) or 0
            rows = [
                row
                for group in range(groups)
                for row in tables.prompt_rows(read_group(path, group).step, group)
            ]
        skipped = ", ".join(f"{name} ({why})" for name, why in steps.skipped.items())
        return {
            "step": gr.Dropdown(choices=[str(x) for x in steps.paths], value=str(place.step)),
            "prompts": rows,
            "note": note(f"Skipped: {skipped}.") if skipped else "",
        }

    # --- search ---------------------------------------------------------------------------------

    def search(self, place: Place) -> Iterator[Values]:
        """The form as the address has it, then what is found, while it is found."""
        fields = place.fields
        query: dict[str, Any] = {"text": fields.get("text", "")}
        values: Values = {"text": query["text"], "scope": fields.get("scope", "run")}
        for name, short in BOUNDS.items():
            query[name] = decimal(fields.get(short))
            values[name] = query[name]
        yield values
        if not any(value not in ("", None) for value in query.values()):
            yield {"matches": [], "counts": plot(None), "progress": "Nothing is asked yet."}
            return
        paths = self.folder.steps(place.run).paths
        if values["scope"] == "step":
            paths = {place.step: paths[place.step]}
        for found in search_run(paths, query):
            yield found_values(found, place)

    # --- compare --------------------------------------------------------------------------------

    def compare(self, place: Place) -> Values:
        fields = place.fields
        now = read_step(self.folder.step_path(place.run, place.step))
        best = best_place(now)
        group = whole(fields.get("prompt"))
        group = best["prompt"] if group is None or group < 0 else group
        start = group_rows(now, group).start
        prompt = int(now.rollouts.prompt_index[start])
        held = dict(steps_with(self.histories.get(place.run), prompt)) or {place.step: group}
        other = whole(fields.get("other"))
        if other not in held:
            other = next(iter(held), place.step)
        before = read_step(self.folder.step_path(place.run, other))
        before_start = group_rows(before, held.get(other, group)).start
        rows = []
        apart = int(before is now)  # of one step: two different completions
        for step, first, key, default in (
            (before, before_start, "from", 0),
            (now, start, "to", apart),
        ):
            count = step.rollouts.num_generations
            asked = whole(fields.get(key))
            chosen = default if asked is None else asked
            rows.append((count, min(max(chosen, 0), count - 1), first))
        (count_before, a, first_a), (count_now, b, first_b) = rows
        prompts = [
            (f"{number + 1}: {last_words(now.rollouts.prompts[row], 60)}", number)
            for number, row in enumerate(group_starts(now).tolist())
        ]
        reduced = now.config is None or before.config is None
        return {
            "compare_prompt": gr.Dropdown(choices=prompts, value=group),
            "other": gr.Dropdown(choices=[(f"step {step}", step) for step in held], value=other),
            "to_step": gr.Dropdown(
                choices=[(f"step {step}", step) for step in held], value=place.step
            ),
            "from": gr.Dropdown(choices=labels(before, first_a, count_before), value=a),
            "to": gr.Dropdown(choices=labels(now, first_b, count_now), value=b),
            "diff": self.to_evaluations(place.run)
            + (
                note("This file holds no tokens to align.")
                if reduced
                else diff_html(before, first_a + a, now, first_b + b)
            ),
            "modes": "" if reduced else modes_html(now, first_b + b),
        }

    def to_evaluations(self, run: str) -> str:
        """A link to the run's evaluations, where it saved some: they have the same prompts."""
        evaluated = f"{run}/{EVALUATIONS}"
        if evaluated not in self.folder.runs():
            return ""
        words = "Compare the evaluations of this run: always the same prompts."
        return f'<p class="spo small hint">{link(words, run=evaluated, tab="compare")}</p>'


def labels(step: Step, first: int, count: int) -> list[tuple[str, int]]:
    """Choices for the completions of a prompt."""
    rewards = step.rollouts.completion_rewards[first : first + count]
    return [(f"#{at + 1} · reward {reward:.3g}", at) for at, reward in enumerate(rewards)]


def plot(spec: Spec | None) -> gr.Plot:
    """The chart; an empty one where there is nothing to draw."""
    return gr.Plot(spec and PlotData(type="altair", plot=json.dumps(spec)))


def wide(place: Place) -> Look:
    return Look(place.look.width - 60, place.look.dark)


def width_of(place: Place) -> int:
    """Steps of the moving average."""
    asked = whole(place.fields.get("average"))
    return asked if asked is not None and 0 <= asked <= 200 else 5


def whole(text: str | None) -> int | None:
    """A whole number of the address, None for anything else."""
    if text is None or not text.lstrip("-").isdecimal() or len(text) > 15:
        return None
    return int(text)


def decimal(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if is_number(value) else None


def line_at(history: History, step: int | None) -> dict | None:
    """The index line of a step, else the last one."""
    lines = {line["step"]: line for line in history.lines}
    return lines.get(step) or (history.lines[-1] if history.lines else None)


def note(sentence: str) -> str:
    return f'<div class="spo small"><p class="note">{html.escape(sentence)}</p></div>'


def found_values(found: Found, place: Place) -> Values:
    total = sum(found.counts.values())
    going = "" if found.done == found.total else " · searching…"
    listed = len(found.matches)
    shown = f", the {listed} with the largest |A| listed" if total > listed else ""
    left = f" · {len(found.skipped)} unreadable steps skipped" if found.skipped else ""
    words = f"{total} segments in {found.done} of {found.total} steps{shown}{left}{going}"
    return {
        "progress": words,
        "matches": tables.search_rows(found.matches),
        "counts": plot(charts.count_bars(found.counts, place.run, wide(place))),
    }
