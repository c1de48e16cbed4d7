"""Maps of a run, steps across: which prompts are solved, where |A| falls -> Vega-Lite. Pure."""

from functools import lru_cache

import numpy as np

from spo.inspector.charts import AXES, BLUE, ORANGE, Look, Spec, document, even_choice, short
from spo.inspector.history import History, numbers
from spo.inspector.markup import address

MAX_COLUMNS = 100
MAX_PROMPTS = 80


def prompt_matrix(history: History, look: Look) -> Spec | None:
    """Rows: prompts, never solved first; columns: steps; colour: mean reward; a click opens the
    group. None where no prompt was seen twice and there are few."""
    cells, order = matrix_cells(history)
    if not cells:
        return None
    encoding = {
        "x": {
            "field": "step",
            "type": "ordinal",
            "axis": {"title": "step", "labelOverlap": True, "labelAngle": 0},
        },
        "y": {
            "field": "prompt",
            "type": "ordinal",
            "sort": order,
            "axis": {"title": "prompt (row of the data set), never solved first"}
            | {"labels": len(order) <= 30},
        },
        "color": {
            "field": "reward",
            "type": "quantitative",
            "scale": {"range": [ORANGE, "#f0e6c8", BLUE], "interpolate": "rgb"},
            "legend": {"title": "mean reward", "gradientLength": 120},
        },
        "href": {"field": "link"},
        "tooltip": [
            {"field": "step"},
            {"field": "prompt"},
            {"field": "reward", "format": ".3g"},
        ],
    }
    return document(
        look,
        data={"values": cells},
        mark={"type": "rect", "cursor": "pointer"},
        encoding=encoding,
        width=look.width - AXES - 40,
        height=min(420, max(90, 9 * len(order))),
    )


@lru_cache(maxsize=4)
def matrix_cells(history: History) -> tuple[list[dict], list[int]]:
    """Cells of the matrix and its prompts in order; steps are joined so that columns stay few."""
    columns = np.array_split(
        np.arange(len(history.lines)), min(len(history.lines), MAX_COLUMNS) or 1
    )
    seen: dict[tuple[int, int], list] = {}
    for part in columns:
        for line in (history.lines[at] for at in part):
            means = group_means(line)
            for group, (prompt, mean) in enumerate(zip(line["prompt_index"], means, strict=False)):
                if not np.isnan(mean):
                    first = history.lines[part[0]]["step"]
                    seen.setdefault((prompt, first), []).append((mean, line["step"], group))
    totals: dict[int, list[float]] = {}
    for (prompt, _), found in seen.items():
        totals.setdefault(prompt, []).extend(mean for mean, _, _ in found)
    often = sorted(totals, key=lambda prompt: (-len(totals[prompt]), prompt))[:MAX_PROMPTS]
    order = sorted(often, key=lambda prompt: (np.mean(totals[prompt]), prompt))
    chosen = set(order)
    cells = [
        {
            "prompt": prompt,
            "step": step,
            "reward": short(np.mean([mean for mean, _, _ in found])),
            "link": address(run=history.run, tab="read", step=found[-1][1], prompt=found[-1][2]),
        }
        for (prompt, step), found in seen.items()
        if prompt in chosen
    ]
    return cells, order


def group_means(line: dict) -> np.ndarray:
    """Mean known reward of each prompt of a step; NaN where none is known."""
    rewards = numbers(line["reward"]).reshape(-1, line["num_generations"])
    known = np.isfinite(rewards)
    sums = np.where(known, rewards, 0.0).sum(1)
    return np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)


def credit_map(history: History, look: Look) -> Spec | None:
    """Where |A| falls: tenth of the completion over the steps."""
    rows = []
    lines = [line for line in history.lines if isinstance(line.get("advantage_by_tenth"), list)]
    for line in [lines[at] for at in even_choice(len(lines), MAX_COLUMNS)]:
        for tenth, size in enumerate(numbers(line["advantage_by_tenth"])):
            if np.isfinite(size):
                rows.append({"step": line["step"], "part": 10 * tenth, "size": short(size)})
    if not rows:
        return None
    encoding = {
        "x": {
            "field": "step",
            "type": "ordinal",
            "axis": {"labelOverlap": True, "labelAngle": 0},
        },
        "y": {
            "field": "part",
            "type": "ordinal",
            "axis": {"title": "% of the completion"},
        },
        "color": {
            "field": "size",
            "type": "quantitative",
            "scale": {"range": ["#eef2f8", BLUE], "zero": True},
            "legend": {"title": "mean |A|", "gradientLength": 120},
        },
        "tooltip": [{"field": "step"}, {"field": "part"}, {"field": "size", "format": ".3g"}],
    }
    return document(
        look,
        data={"values": rows},
        mark="rect",
        encoding=encoding,
        width=look.width - AXES - 40,
        height=170,
    )
