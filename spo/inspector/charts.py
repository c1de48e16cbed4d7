"""A run's history -> Vega-Lite specifications, which gr.Plot draws. Pure: plain dictionaries.

Charts of one specification share their cursor. A point, a cell or a bar that stands for rollouts
is a link to them.
"""

from typing import Any, NamedTuple

import numpy as np

from spo.inspector.history import History
from spo.inspector.markup import address
from spo.inspector.verdicts import Verdict, smooth

Spec = dict[str, Any]
MAX_POINTS = 160
"""Of a line: about one for each two pixels of a chart."""
HEIGHT = 130
BLUE, ORANGE, GREY, GREEN = "#3b78d8", "#d9731a", "#8a8f98", "#2b8a57"
AXES = 64
"""Pixels a chart's axis and labels take beside it."""


class Look(NamedTuple):
    """What a specification depends on besides its data: width in px, dark colours."""

    width: int
    dark: bool

    @property
    def columns(self) -> int:
        """How many charts stand side by side."""
        return 1 if self.width < 520 else 2 if self.width < 1100 else 3

    @property
    def chart_width(self) -> int:
        return max(160, self.width // self.columns - AXES - 16)


CHARTS = {
    "Reward": {"reward": "reward", "eval/reward": "evaluation"},
    "Entropy and cut (nats)": {"entropy": "entropy", "spo/entropy_threshold": "cut"},
    "Explained variance of the critic": {
        "spo/explained_variance": "V at every token",
        "explained_variance_prompt": "V(prompt) alone",
    },
    "Completion length (tokens)": {"completions/mean_length": "mean length"},
    "Shares": {
        "completions/clipped_ratio": "truncated",
        "frac_reward_zero_std": "prompts without contrast",
    },
    "KL, clipping, gradients (log)": {
        "kl": "KL",
        "spo/clip_fraction": "clipped",
        "grad_norm": "gradient",
        "spo/value_grad_norm": "critic's gradient",
    },
}
LINE_COLOURS = [BLUE, ORANGE, GREEN, "#9a57c4", GREY, "#b23b4e", "#11879b", "#a07a1f", "#5c6bc0"]


def document(look: Look, **parts) -> Spec:
    """A whole specification with the page's colours."""
    ink, line = ("#e8e7e3", "#3a3f48") if look.dark else ("#1b1d21", "#dfded8")
    soft = "#a9adb5" if look.dark else "#565a62"
    text = {
        "labelColor": soft,
        "titleColor": soft,
        "labelFont": "system-ui",
        "titleFont": "system-ui",
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "transparent",
        "usermeta": {"embedOptions": {"actions": False}},  # no menu that sends data elsewhere
        "config": {
            "view": {"stroke": line},
            "axis": {**text, "gridColor": line, "tickColor": line, "domainColor": line}
            | {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
            "legend": {**text, "orient": "top", "title": None, "symbolSize": 60, "offset": 2}
            | {"symbolOpacity": 1, "symbolType": "stroke", "symbolStrokeWidth": 3},
            "title": {"color": ink, "font": "system-ui", "fontSize": 13, "anchor": "start"},
        },
        **parts,
    }


def run_charts(histories: list[History], marks: list[Verdict], look: Look, width: int) -> Spec:
    """The six charts of a run: one cursor, the verdicts as dashed lines, evaluation and spread.

    Args:
        histories: the run, then runs to overlay.
        width: steps of the moving average; 0: none.
    """
    by_chart: dict[str, list[dict]] = {}
    for title, lines in CHARTS.items():
        found = [
            row
            for history in histories
            for name, label in lines.items()
            for row in points(history, name, owner(histories, history, label), title, width)
        ]
        if found:
            by_chart[title] = found
    edges = columns_of([row for rows in by_chart.values() for row in rows])
    views = []
    for number, (title, rows) in enumerate(by_chart.items()):
        spreads = [row for history in histories for row in spread(history, width)]
        chart = {"title": title, "width": look.chart_width, "height": HEIGHT}
        chart["data"] = {"values": placed(rows, edges)}
        chart["layer"] = [
            *reward_spread(spreads if title == "Reward" else []),
            *lines_and_marks(title, rows, marks),
            *cursor_layers(number, rows, edges, histories[0].run),
        ]
        views.append(chart)
    cursor = {
        "name": "cursor",
        "select": {
            "type": "point",
            "fields": ["at"],
            "on": "pointerover",
            "clear": "pointerout",
        },
        "views": [f"view{number}" for number in range(len(views))],
    }
    return document(
        look,
        params=[cursor],
        concat=views,
        columns=look.columns,
        spacing=14,
        resolve={"scale": {"color": "independent", "y": "independent"}},
    )


def owner(histories: list[History], history: History, label: str) -> str:
    """What a line is called; with its run where there are several."""
    return f"{history.run}: {label}" if len(histories) > 1 else label


def columns_of(rows: list[dict]) -> np.ndarray:
    """The edges of the columns in which the cursor moves: as many as there are steps, up to
    MAX_POINTS."""
    steps = np.unique([row["step"] for row in rows])
    if len(steps) <= MAX_POINTS:
        middles = (steps[1:] + steps[:-1]) / 2
        return np.concatenate([steps[:1] - 0.5, middles, steps[-1:] + 0.5])
    return np.linspace(steps[0] - 0.5, steps[-1] + 0.5, MAX_POINTS + 1)


def placed(rows: list[dict], edges: np.ndarray) -> list[dict]:
    """The rows with the number of their column."""
    at = np.searchsorted(edges, [row["step"] for row in rows], side="right") - 1
    return [row | {"at": int(column)} for row, column in zip(rows, at, strict=True)]


X = {
    "field": "step",
    "type": "quantitative",
    "scale": {"zero": False, "nice": False},
    "axis": {"title": None, "tickCount": 6, "grid": False, "format": "d"},
}


def lines_and_marks(title: str, rows: list[dict], marks: list[Verdict]) -> list[Spec]:
    """Faint numbers, their average, the verdicts as dashed lines, and dots at the cursor."""
    scale = {"type": "log"} if "(log)" in title else {"zero": False}
    if "variance" in title:
        scale = variance_scale(rows)
    y = {"type": "quantitative", "scale": scale, "axis": {"title": None, "tickCount": 5}}
    colour = {"field": "line", "type": "nominal", "scale": {"range": LINE_COLOURS}, "sort": None}
    layers = [
        {
            "mark": {"type": "line", "opacity": opacity, "strokeWidth": stroke},
            "encoding": {"x": X, "y": y | {"field": field}, "color": colour},
        }
        for field, opacity, stroke in (("value", 0.25, 1), ("average", 1, 1.8))
    ]
    found = [
        {"step": mark.since, "words": mark.sentence}
        for mark in marks
        if mark.series in CHARTS[title] or (mark.series, title) == ("distinct", "Shares")
    ]
    if found:
        rule = {"type": "rule", "color": ORANGE, "strokeDash": [4, 3], "strokeWidth": 1.5}
        layers.append({"data": {"values": found}, "mark": rule, "encoding": {"x": X}})
    at_cursor = [{"filter": {"param": "cursor", "empty": False}}]
    dot = {"type": "point", "filled": True, "size": 60}
    encoding = {"x": X, "y": y | {"field": "average"}, "color": colour}
    return [*layers, {"transform": at_cursor, "mark": dot, "encoding": encoding}]


def variance_scale(rows: list[dict]) -> Spec:
    """Explained variance down to −1: what a critic that knows nothing yet says may be anything."""
    lowest = min((row["value"] for row in rows), default=0.0)
    return {"domainMin": -1, "clamp": True} if lowest < -1 else {"zero": False}


def to_step(run: str) -> Spec:
    """Gives every row a link to its step."""
    return {"calculate": f"'{address(run=run, tab='step')}&step=' + datum.step", "as": "link"}


def reward_spread(spreads: list[dict]) -> list[Spec]:
    """The band of one standard deviation."""
    if not spreads:
        return []
    ends = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    area = {"type": "area", "opacity": 0.12, "color": BLUE}
    return [{"data": {"values": spreads}, "mark": area, "encoding": {"x": X, **ends}}]


def cursor_layers(number: int, rows: list[dict], edges: np.ndarray, run: str) -> list[Spec]:
    """A line at the cursor, and an unseen bar for each column: it says the numbers that stand
    there, and leads to a step of it."""
    bars: dict[int, dict] = {}
    names = list(dict.fromkeys(row["line"] for row in rows))
    for row in placed(rows, edges):
        at = row["at"]
        bar = bars.setdefault(at, {"at": at, "from": short(edges[at]), "to": short(edges[at + 1])})
        bar |= {"step": row["step"], f"v{names.index(row['line'])}": row["value"]}
    numbers = [{"field": f"v{at}", "title": name, "format": ".4g"} for at, name in enumerate(names)]
    ends = {"x": X | {"field": "from"}, "x2": {"field": "to"}}
    at_cursor = {"filter": {"param": "cursor", "empty": False}}
    return [
        {"transform": [at_cursor], "mark": {"type": "rule", "color": GREY}, "encoding": {"x": X}},
        {
            "name": f"view{number}",
            "data": {"values": list(bars.values())},
            "transform": [to_step(run)],
            "mark": {"type": "rect", "opacity": 0, "cursor": "pointer"},
            "encoding": {
                **ends,
                "href": {"field": "link"},
                "tooltip": [{"field": "step"}, *numbers],
            },
        },
    ]


def points(history: History, name: str, owner: str, chart: str, width: int) -> list[dict]:
    """Rows of one line; of many steps the farthest of each stretch stays, so that spikes do."""
    series = history.series(name)
    if series is None:
        return []
    keep = np.isfinite(series.values)
    if "(log)" in chart:
        keep &= series.values > 1e-9
    steps, values = series.steps[keep], series.values[keep]
    average = smooth(values, width) if width > 1 and len(values) > 3 else values
    return [
        {
            "line": owner,
            "step": int(steps[at]),
            "value": short(values[at]),
            "average": short(average[at]),
        }
        for at in thinned(values)
    ]


def thinned(values: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """Positions that keep a curve's look: of each stretch the value farthest from the median."""
    if len(values) <= most:
        return np.arange(len(values))
    far = np.abs(values - np.median(values))
    stretches = np.array_split(np.arange(len(values)), most)
    return np.array([part[np.argmax(far[part])] for part in stretches])


def short(x: float) -> float:
    return float(f"{x:.4g}")


def spread(history: History, width: int) -> list[dict]:
    """The band of one standard deviation around the reward."""
    reward, std = history.series("reward"), history.series("reward_std")
    if reward is None or std is None or len(reward.steps) != len(std.steps):
        return []
    middle = smooth(reward.values, width) if width > 1 and len(reward.values) > 3 else reward.values
    wide = smooth(std.values, width) if width > 1 and len(std.values) > 3 else std.values
    return [
        {
            "step": int(reward.steps[at]),
            "low": short(middle[at] - wide[at]),
            "high": short(middle[at] + wide[at]),
        }
        for at in thinned(middle)
        if np.isfinite(middle[at] + wide[at])
    ]


def metric_chart(history: History, name: str, look: Look, width: int) -> Spec:
    """Any one metric."""
    rows = points(history, name, name, name, width)
    x = {"field": "step", "type": "quantitative", "axis": {"grid": False}}
    y = {"type": "quantitative", "scale": {"zero": False}, "axis": {"title": name}}
    tooltip = [{"field": "step"}, {"field": "value"}]
    layers = [
        {
            "mark": {"type": "line", "opacity": 0.3},
            "encoding": {"x": x, "y": y | {"field": "value"}},
        },
        {
            "mark": {"type": "line", "point": True},
            "encoding": {
                "x": x,
                "y": y | {"field": "average"},
                "href": {"field": "link"},
                "tooltip": tooltip,
            },
        },
    ]
    size = {"width": look.width - AXES - 24, "height": 220}
    transform = [to_step(history.run)]
    return document(look, data={"values": rows}, transform=transform, layer=layers, **size)


def plain_charts(history: History, width: int = 5) -> list[dict[str, Any]]:
    """The six charts as numbers alone: title, steps, and of each line its moving average there,
    None where it has none."""
    found = []
    for title, names in CHARTS.items():
        lines = {label: points(history, name, label, title, width) for name, label in names.items()}
        steps = sorted({row["step"] for rows in lines.values() for row in rows})
        at = {label: {row["step"]: row["average"] for row in rows} for label, rows in lines.items()}
        known = {label: [x.get(step) for step in steps] for label, x in at.items() if x}
        if len(steps) > 1:
            found.append({"title": title.removesuffix(" (log)"), "steps": steps, "lines": known})
    return found


def even_choice(count: int, most: int) -> np.ndarray:
    """At most `most` positions, spread evenly, the last included."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).astype(int))


def count_bars(counts: dict[int, int], run: str, look: Look) -> Spec | None:
    """Matches of a search by step; a bar leads to its step."""
    steps = sorted(counts)
    if not any(counts.values()):
        return None
    rows = [
        {
            "step": steps[part[0]],
            "matches": sum(counts[steps[at]] for at in part),
            "link": address(run=run, tab="step", step=steps[part[0]]),
        }
        for part in np.array_split(np.arange(len(steps)), min(len(steps), MAX_POINTS))
    ]
    encoding = {
        "x": {"field": "step", "type": "ordinal", "axis": {"labelOverlap": True, "labelAngle": 0}},
        "y": quantity("matches"),
        "href": {"field": "link"},
        "tooltip": [{"field": "step"}, {"field": "matches"}],
    }
    mark = {"type": "bar", "color": BLUE, "cursor": "pointer"}
    size = {"width": look.width - AXES - 40, "height": 80}
    return document(look, data={"values": rows}, mark=mark, encoding=encoding, **size)


def quantity(field: str, title: str | None = None, **axis) -> dict:
    """A number on an axis."""
    return {"field": field, "type": "quantitative", "axis": {"title": title, **axis}}
