"""A query -> the segments of a whole run that match it, counted by step.

A run may have a thousand steps, so one call looks at as many as fit into `BUDGET` seconds and says
where to go on; the page adds the answers up.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from spo.inspector.step import Step
from spo.inspector.text import char_ends
from spo.inspector.views import bound, group_rows, group_starts, matches, number
from spo.segments import segment_starts

BUDGET = 0.4
MAX_MATCHES = 300
MEASURES = ("advantage", "entropy", "value", "reward")


def find_in_run(
    paths: dict[int, Any], read: Callable[[Any], Step], query: dict[str, Any], start: int = 0
) -> dict[str, Any]:
    """Search the steps of a run from position `start` on.

    Args:
        paths: step -> file, ascending.
        read: file -> Step; its ValueError skips the step and is passed on.
        query: see `find_segments`; `steps` restricts the search to these steps.

    Returns:
        `counts` {step: number of matches}, `matches` (at most MAX_MATCHES), `skipped`
        {step: reason} and `next`, the position to go on from, None at the end.
    """
    check_query(query)
    numbers = [step for step in paths if not query.get("steps") or step in query["steps"]]
    counts, found, skipped = {}, [], {}
    deadline = time.monotonic() + BUDGET
    position = max(0, start)
    while position < len(numbers) and (not counts or time.monotonic() < deadline):
        step_number = numbers[position]
        position += 1
        try:
            step = read(paths[step_number])
        except ValueError as error:
            skipped[step_number] = str(error)
            continue
        count, shown = find_segments(step, query, MAX_MATCHES - len(found))
        counts[step_number] = count
        found += [{"step": step_number, **match} for match in shown]
    return {
        "counts": counts,
        "matches": found,
        "skipped": skipped,
        "next": position if position < len(numbers) else None,
    }


def check_query(query: dict[str, Any]) -> None:
    """Raises ValueError with one sentence where the query is not valid."""
    for measure in MEASURES:
        bound(query, f"{measure}_min")
        bound(query, f"{measure}_max")
    matches([""], str(query.get("text") or ""))
    if not isinstance(query.get("steps") or [], list):
        raise ValueError("steps must be a list of step numbers.")


def find_segments(step: Step, query: dict[str, Any], limit: int) -> tuple[int, list[dict]]:
    """The segments of a step that match: how many, and the first `limit` of them.

    Args:
        query: `advantage_min`, `advantage_max` and the same for entropy and value (all read at
            the segment's first token) and reward (of the completion), all inclusive; `text`, an
            RE2 pattern searched in the segment's text.
    """
    rollouts, credit = step.rollouts, step.credit
    rows, tokens = np.nonzero(segment_starts(credit.segment_ids))
    stops = np.where(np.append(rows[1:] == rows[:-1], False), np.append(tokens[1:], 0), -1)
    stops = np.where(stops < 0, rollouts.lengths[rows], stops)
    columns = {
        "advantage": credit.token_advantages[rows, tokens],
        "entropy": rollouts.token_entropies[rows, tokens],
        "reward": rollouts.completion_rewards[rows],
    }
    if rollouts.token_values is not None:
        columns["value"] = rollouts.token_values[rows, tokens]
    keep = np.ones(len(rows), dtype=bool)
    for measure in MEASURES:
        keep &= _within(columns.get(measure), query, measure, len(rows))
    chosen = np.flatnonzero(keep)
    if query.get("text"):
        texts = _texts(step, rows[chosen], tokens[chosen], stops[chosen])
        chosen = chosen[matches(texts, str(query["text"]))]
    shown = chosen[: max(0, limit)]
    texts = _texts(step, rows[shown], tokens[shown], stops[shown])
    starts = group_starts(step)
    groups = np.searchsorted(starts, rows[shown], side="right") - 1
    return len(chosen), [
        {
            "group": int(group),
            "completion": int(rows[i]) - group_rows(step, int(group)).start,
            "token": int(tokens[i]),
            "length": int(stops[i] - tokens[i]),
            "text": text[:200],
            **{measure: number(column[i]) for measure, column in columns.items()},
        }
        for i, group, text in zip(shown, groups, texts, strict=True)
    ]


def _within(column: np.ndarray | None, query: dict[str, Any], measure: str, size: int):
    low, high = bound(query, f"{measure}_min"), bound(query, f"{measure}_max")
    keep = np.full(size, column is not None or low is high is None)
    if column is not None and low is not None:
        keep &= column >= low
    if column is not None and high is not None:
        keep &= column <= high
    return keep


def _texts(step: Step, rows: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[str]:
    """Text of each span of tokens; the offsets of a completion are computed once."""
    texts, offsets = [], {}
    for row, start, stop in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True):
        text = step.rollouts.completions[row]
        if row not in offsets:
            length = int(step.rollouts.lengths[row])
            ends = char_ends(text, step.rollouts.token_ends[row, :length])
            offsets[row] = [0, *ends.tolist()]
        texts.append(text[offsets[row][start] : offsets[row][stop]])
    return texts


def find_prompt(
    paths: dict[int, Any], read: Callable[[Any], Step], prompt: str, start: int = 0
) -> dict[str, Any]:
    """The steps that hold a prompt, and its group in each; sliced like `find_in_run`."""
    numbers = list(paths)
    found = []
    deadline = time.monotonic() + BUDGET
    position = max(0, start)
    while position < len(numbers) and (position == start or time.monotonic() < deadline):
        step_number = numbers[position]
        position += 1
        try:
            step = read(paths[step_number])
        except ValueError:
            continue  # the page lists unreadable steps already
        for group, row in enumerate(group_starts(step).tolist()):
            if step.rollouts.prompts[row] == prompt:
                found.append(
                    {
                        "step": step_number,
                        "group": group,
                        "rewards": [
                            number(x)
                            for x in step.rollouts.completion_rewards[group_rows(step, group)]
                        ],
                    }
                )
    return {"found": found, "next": position if position < len(numbers) else None}
