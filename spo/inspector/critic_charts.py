"""Charts of the critic and of the reward functions -> Vega-Lite specifications. Pure."""

import numpy as np

from spo.inspector.charts import (
    AXES,
    BLUE,
    CHARTS,
    GREY,
    LINE_COLOURS,
    MAX_POINTS,
    Look,
    Spec,
    document,
    even_choice,
    points,
    quantity,
    short,
    to_step,
    variance_scale,
)
from spo.inspector.history import SOURCE_EV, History, function_rewards, numbers
from spo.inspector.markup import address

MAX_DOTS = 1500


def critic_charts(history: History, line: dict | None, look: Look, width: int) -> Spec | None:
    """EV over the steps; EV by position in the completion; calibration with error bars."""
    views = []
    title = "Explained variance of the critic"
    lines = dict(CHARTS[title])
    lines |= {SOURCE_EV + name: f"{name} alone" for name in history.value_sources}
    rows = [
        row for name, label in lines.items() for row in points(history, name, label, title, width)
    ]
    common = {"width": look.chart_width, "height": 200}
    if rows:
        layers = {"transform": [to_step(history.run)], "layer": ev_layers(variance_scale(rows))}
        views.append(common | {"title": title, "data": {"values": rows}} | layers)
    tenths = numbers((line or {}).get("explained_variance_by_tenth"))
    if np.isfinite(tenths).any():
        bars = [{"part": 10 * at, "ev": short(x)} for at, x in enumerate(tenths) if np.isfinite(x)]
        views.append(
            common
            | {
                "title": f"By position in the completion, step {line['step']}",
                "data": {"values": bars},
                "mark": {"type": "bar", "color": BLUE, "tooltip": True},
                "encoding": {
                    "x": {
                        "field": "part",
                        "type": "ordinal",
                        "axis": {"title": "% of the completion", "labelAngle": 0},
                    },
                    "y": {
                        "field": "ev",
                        "type": "quantitative",
                        "axis": {"title": "explained variance"},
                    },
                },
            }
        )
    bins = calibration_rows(line)
    if bins:
        views.append(common | calibration_chart(bins, line["step"]))
    return document(look, concat=views, columns=look.columns, spacing=18) if views else None


def ev_layers(scale: Spec) -> list[Spec]:
    x = {"field": "step", "type": "quantitative", "axis": {"grid": False}}
    y = {"type": "quantitative", "scale": scale, "axis": {"title": None}}
    colour = {"field": "line", "type": "nominal", "scale": {"range": LINE_COLOURS}, "sort": None}
    colour |= {"legend": {"columns": 2}}
    faint = {"mark": {"type": "line", "opacity": 0.25}}
    point = {"field": "link"}
    tooltip = [{"field": "step"}, {"field": "line"}, {"field": "value", "format": ".3g"}]
    return [
        faint | {"encoding": {"x": x, "y": y | {"field": "value"}, "color": colour}},
        {
            "mark": {"type": "line", "point": {"size": 24}},
            "encoding": {
                "x": x,
                "y": y | {"field": "average"},
                "color": colour,
                "href": point,
                "tooltip": tooltip,
            },
        },
    ]


def calibration_rows(line: dict | None) -> list[dict]:
    rows = []
    for item in (line or {}).get("calibration") or []:
        cells = numbers(item)
        if cells.shape == (4,) and np.isfinite(cells).all():
            value, reward, error, count = cells
            rows.append(
                {
                    "value": short(value),
                    "reward": short(reward),
                    "low": short(reward - 2 * error),
                    "high": short(reward + 2 * error),
                    "count": int(count),
                }
            )
    return rows


def calibration_chart(bins: list[dict], step: int) -> Spec:
    """Mean V at segment starts against the mean final reward, ± 2 standard errors; the axes end
    where the numbers do."""
    low = min(min(row["value"], row["low"]) for row in bins)
    high = max(max(row["value"], row["high"]) for row in bins)
    pad = max(0.05 * (high - low), 1e-3)
    scale = {"domain": [short(low - pad), short(high + pad)], "nice": False}
    x = {"field": "value", "type": "quantitative", "scale": scale}
    y = {"field": "reward", "type": "quantitative", "scale": scale}
    diagonal = [{"value": end, "reward": end} for end in scale["domain"]]
    return {
        "title": f"Calibration at segment starts, step {step}",
        "data": {"values": bins},
        "layer": [
            {
                "data": {"values": diagonal},
                "mark": {"type": "line", "color": GREY, "strokeDash": [4, 3]},
                "encoding": {"x": x, "y": y},
            },
            {
                "mark": {"type": "rule", "color": BLUE},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "color": BLUE},
                "encoding": {
                    "x": x | {"axis": {"title": "mean V"}},
                    "y": y | {"axis": {"title": "mean final reward"}},
                    "size": {"field": "count", "type": "quantitative", "legend": None},
                    "tooltip": [{"field": name} for name in ("value", "reward", "count")],
                },
            },
        ],
    }


def hacking_charts(history: History, look: Look, width: int) -> Spec | None:
    """Each reward function over the steps, and its correlation with length and with the others."""
    names = history.reward_functions
    levels = [
        row
        for name in names
        for row in points(history, f"rewards/{name}/mean", name, "functions", width)
    ]
    pairs = correlations(history, names)
    common = {"width": max(160, look.width // min(2, look.columns) - AXES - 24), "height": 200}
    views = []
    x = {"field": "step", "type": "quantitative", "axis": {"grid": False}}
    colour = {"field": "line", "type": "nominal", "scale": {"range": LINE_COLOURS}, "sort": None}
    for title, rows, field in (
        ("Each reward function, mean of a step", levels, "average"),
        ("Correlation within a step", pairs, "value"),
    ):
        if rows:
            y = {"field": field, "type": "quantitative", "axis": {"title": None}}
            tooltip = [{"field": "step"}, {"field": "line"}, {"field": "value", "format": ".3g"}]
            encoding = {
                "x": x,
                "y": y,
                "color": colour,
                "tooltip": tooltip,
                "href": {"field": "link"},
            }
            mark = {"type": "line", "point": {"size": 20}}
            chart = {"title": title, "data": {"values": rows}, "mark": mark}
            chart |= {"encoding": encoding, "transform": [to_step(history.run)]}
            views.append(common | chart)
    scale = {"scale": {"color": "independent"}}
    if not views:
        return None
    return document(look, concat=views, columns=min(2, look.columns), resolve=scale)


def correlations(history: History, names: list[str]) -> list[dict]:
    """Pearson's r of each function with the length and with each other function, by step."""
    rows = []
    for line in [history.lines[at] for at in even_choice(len(history.lines), MAX_POINTS)]:
        columns = {name: function_rewards(line, name) for name in names}
        columns["length"] = numbers(line["length"])
        keys = list(columns)
        for i, a in enumerate(keys):
            for b in keys[i + 1 :]:
                r = pearson(columns[a], columns[b])
                if r is not None:
                    label = f"{a} × {b}"
                    rows.append({"step": line["step"], "line": label, "value": short(r)})
    return rows


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where one of them does not vary or too few numbers are known."""
    if a.shape != b.shape:
        return None
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 4 or a[both].std() < 1e-9 or b[both].std() < 1e-9:
        return None
    return float(np.corrcoef(a[both], b[both])[0, 1])


def length_scatter(history: History, line: dict | None, look: Look) -> Spec | None:
    """Reward against length of the completions of one step; a click opens one."""
    if line is None:
        return None
    rewards, lengths = numbers(line["reward"]), numbers(line["length"])
    size = line["num_generations"]
    place = {"run": history.run, "tab": "read", "step": line["step"]}
    rows = [
        {
            "length": int(lengths[at]),
            "reward": short(rewards[at]),
            "link": address(**place, prompt=at // size, completion=at % size),
        }
        for at in range(min(len(rewards), MAX_DOTS))
        if np.isfinite(rewards[at]) and np.isfinite(lengths[at])
    ]
    if not rows:
        return None
    encoding = {
        "x": quantity("length", "tokens") | {"scale": {"zero": False}},
        "y": {"field": "reward", "type": "quantitative"},
        "href": {"field": "link"},
        "tooltip": [{"field": "length"}, {"field": "reward"}],
    }
    mark = {"type": "point", "filled": True, "opacity": 0.5, "color": BLUE, "cursor": "pointer"}
    title = f"Reward against length, step {line['step']}"
    size = {"width": look.width - AXES - 24, "height": 200}
    return document(look, data={"values": rows}, mark=mark, encoding=encoding, title=title, **size)
