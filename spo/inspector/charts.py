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
MAX_POINTS = 300
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
TOOLTIP = [
    {"field": "step"},
    {"field": "line", "title": "of"},
    {"field": "value", "format": ".4g"},
    {"field": "average", "format": ".4g"},
]
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
    rows, spreads = [], []
    for history in histories:
        for title, lines in CHARTS.items():
            for name, label in lines.items():
                owner = f"{history.run}: {label}" if len(histories) > 1 else label
                rows += points(history, name, owner, title, width)
        spreads += spread(history, width)
    shown = [title for title in CHARTS if any(row["chart"] == title for row in rows)]
    cursor = {
        "name": "cursor",
        "select": {
            "type": "point",
            "fields": ["step"],
            "nearest": True,
            "on": "pointermove",
            "clear": "pointerout",
        },
        "views": [f"view{number}" for number in range(len(shown))],
    }
    views = [
        run_chart(number, title, marks, look, spreads if title == "Reward" else [])
        for number, title in enumerate(shown)
    ]
    return document(
        look,
        data={"values": rows},
        params=[cursor],
        concat=views,
        columns=look.columns,
        spacing=14,
        resolve={"scale": {"color": "independent", "y": "independent"}},
    )


def run_chart(number: int, title: str, marks: list[Verdict], look: Look, spreads: list) -> Spec:
    """One chart: faint numbers, their average, the spread, the verdicts, the cursor."""
    low = {"type": "log"} if "(log)" in title else {"zero": False}
    x = {
        "field": "step",
        "type": "quantitative",
        "axis": {"title": None, "tickCount": 6, "grid": False},
    }
    y = {"type": "quantitative", "scale": low, "axis": {"title": None, "tickCount": 5}}
    colour = {"field": "line", "type": "nominal", "scale": {"range": LINE_COLOURS}, "sort": None}
    here = {"filter": f"datum.chart == '{title}'"}
    found = [
        {"step": mark.since, "words": mark.sentence}
        for mark in marks
        if mark.series in CHARTS[title] or (mark.series, title) == ("distinct", "Shares")
    ]
    at_cursor = {"condition": {"param": "cursor", "empty": False, "value": 1}, "value": 0}
    layers = [
        {
            "transform": [here],
            "mark": {"type": "line", "opacity": 0.25, "strokeWidth": 1},
            "encoding": {"x": x, "y": y | {"field": "value"}, "color": colour},
        },
        {
            "transform": [here],
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {"x": x, "y": y | {"field": "average"}, "color": colour},
        },
        {
            "name": f"view{number}",
            "transform": [here],
            "mark": {"type": "point", "filled": True, "size": 70, "cursor": "pointer"},
            "encoding": {
                "x": x,
                "y": y | {"field": "average"},
                "color": colour,
                "opacity": at_cursor,
                "href": {"field": "link"},
                "tooltip": TOOLTIP,
            },
        },
        {
            "transform": [here],
            "mark": {"type": "rule", "color": GREY},
            "encoding": {"x": x, "opacity": at_cursor},
        },
    ]
    if spreads:
        ends = {"y": y | {"field": "low"}, "y2": {"field": "high"}}
        area = {"type": "area", "opacity": 0.12, "color": BLUE}
        layers.insert(0, {"data": {"values": spreads}, "mark": area, "encoding": {"x": x, **ends}})
    if found:
        rule = {"type": "rule", "color": ORANGE, "strokeDash": [4, 3], "strokeWidth": 1.5}
        words = {"field": "words", "title": "verdict"}
        layers.append(
            {"data": {"values": found}, "mark": rule, "encoding": {"x": x, "tooltip": [words]}}
        )
    return {"title": title, "width": look.chart_width, "height": HEIGHT, "layer": layers}


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
            "chart": chart,
            "line": owner,
            "step": int(steps[at]),
            "value": short(values[at]),
            "average": short(average[at]),
            "link": address(run=history.run, tab="step", step=int(steps[at])),
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
    return document(
        look, data={"values": rows}, layer=layers, width=look.width - AXES - 24, height=220
    )


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
