"""Rollouts of a step and their credit -> one JSON line in `rollouts/index.jsonl`.

A run of 3,000 steps is too much Parquet to read for a question about the run. The index answers
such questions: 1-2 KB a step of 64 completions. The trainer appends a line once the step's file is
in place; `rebuild` makes the lines of a run that has none. Standard library and numpy only.

Axes: B completions, P prompts (B = P × num_generations), 10 tenths of a completion.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.rollouts import Credit, Rollouts, load_rollouts
from spo.segments import segment_starts

VERSION = 1
NAME = "index.jsonl"
TENTHS = 10
CALIBRATION_BINS = 10
MAX_BYTES = 256 << 20
LINE_FIELDS = ("step", "num_generations", "prompt_index", "reward", "length", "truncated")


def append(
    rollouts: Rollouts, credit: Credit, folder: str | Path, evaluation: bool = False
) -> None:
    """Add the step's line to `folder`/index.jsonl, the folder of its Parquet file.

    A line that a kill cut short stays alone on its line.
    """
    line = json.dumps(index_line(rollouts, credit, evaluation), separators=(",", ":"))
    with (Path(folder) / NAME).open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode() + b"\n")


def index_line(rollouts: Rollouts, credit: Credit, evaluation: bool = False) -> dict[str, Any]:
    """What the run's index says of one step; numbers with three digits, NaN as None.

    Returns:
        Per prompt: `prompt_index` (P). Per completion (B): `reward`, `rewards_by_function` (None
        for a function that equals the reward), `length`, `entropy` (mean, nats), `value` (V of
        the prompt; None without a critic); `truncated` lists the rows that were cut off.
        Of the step: `distinct` (share of different texts), `advantage_by_tenth` (mean |A|),
        `segments` per completion and `segment_length` in tokens (means); with a critic also
        `explained_variance` of V at every token, `explained_variance_prompt` of V(prompt) alone,
        `explained_variance_by_tenth`, `explained_variance_by_source` (of each value source, were
        it alone the critic; only where there are several), and `calibration`: [mean V, mean
        reward, its standard error, count] of ten equally filled bins of segment starts.
    """
    mask = rollouts.loss_mask(False)
    tenths = tenth_of(rollouts.completion_mask)
    lengths = rollouts.lengths
    starts = segment_starts(credit.segment_ids)
    line = {
        "version": VERSION,
        "step": int(rollouts.step),
        "evaluation": evaluation,
        "num_generations": rollouts.num_generations,
        "prompt_index": rollouts.prompt_index[:: rollouts.num_generations].tolist(),
        "reward": rounded(rollouts.completion_rewards),
        "rewards_by_function": by_function(rollouts),
        "length": lengths.tolist(),
        "truncated": np.flatnonzero(rollouts.truncated).tolist(),
        "entropy": rounded(mean_over(rollouts.token_entropies, rollouts.completion_mask), 2),
        "value": None,
        "distinct": one(len(set(rollouts.completions)) / max(len(rollouts), 1)),
        "advantage_by_tenth": by_tenth(np.abs(credit.token_advantages), mask, tenths),
        "segments": one(starts.sum() / max(len(rollouts), 1)),
        "segment_length": one(lengths.sum() / max(starts.sum(), 1)),
        "entropy_threshold": one(credit.entropy_threshold),
    }
    if rollouts.token_values is not None:
        line["value"] = rounded(
            np.where(lengths > 0, first_column(rollouts.token_values), np.nan), 2
        )
        line |= critic_fit(rollouts, credit, mask, tenths, starts)
    return line


def critic_fit(rollouts, credit, mask, tenths, starts) -> dict[str, Any]:
    """How well V predicts: over the step, by tenth, of V(prompt) alone, and by value."""
    values = rollouts.token_values
    returns = credit.token_returns
    if returns is None:
        returns = np.broadcast_to(rollouts.completion_rewards[:, None], values.shape)
    of_prompt = np.broadcast_to(first_column(values)[:, None], values.shape)
    by_source = {
        name: one(explained_variance(array, returns, mask))
        for name, array in rollouts.values_by_source.items()
    }
    return {
        "explained_variance": one(explained_variance(values, returns, mask)),
        "explained_variance_prompt": one(explained_variance(of_prompt, returns, mask)),
        "explained_variance_by_tenth": [
            one(explained_variance(values, returns, mask & (tenths == tenth)))
            for tenth in range(TENTHS)
        ],
        "calibration": calibration(values, rollouts.completion_rewards, starts & mask),
        **({"explained_variance_by_source": by_source} if len(by_source) > 1 else {}),
    }


def explained_variance(
    values: Float[np.ndarray, "B T"],
    returns: Float[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
) -> float:
    """1 − Var(return − V) / Var(return) over the masked tokens; NaN where all returns agree."""
    target = returns[mask].astype(np.float64)
    if target.size < 2 or not target.var() > 1e-12:
        return float("nan")
    return float(1 - (target - values[mask]).var() / target.var())


def calibration(
    values: Float[np.ndarray, "B T"],
    completion_rewards: Float[np.ndarray, " B"],
    starts: Bool[np.ndarray, "B T"],
) -> list[list[float | None]]:
    """[mean V, mean reward, its standard error, count] of equally filled bins of segment starts."""
    predicted = values[starts].astype(np.float64)
    rewards = np.broadcast_to(completion_rewards[:, None], starts.shape)[starts].astype(np.float64)
    order = np.argsort(predicted, kind="stable")
    bins = [part for part in np.array_split(order, CALIBRATION_BINS) if len(part)]
    return [
        [
            one(predicted[part].mean()),
            one(rewards[part].mean()),
            one(rewards[part].std() / np.sqrt(len(part))),
            len(part),
        ]
        for part in bins
    ]


def tenth_of(mask: Bool[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
    """Which tenth of its completion each token lies in.

    >>> tenth_of(np.array([[True, True, True, True, False]]))
    array([[ 0,  2,  5,  7, -1]])
    """
    position = np.cumsum(mask, axis=1) - 1
    tenths = TENTHS * position // np.maximum(mask.sum(1, keepdims=True), 1)
    return np.where(mask, tenths, -1)


def by_tenth(array, mask, tenths) -> list[float | None]:
    """Mean over the masked tokens of each tenth."""
    inside = mask & (tenths >= 0)
    sums = np.bincount(tenths[inside], array[inside], minlength=TENTHS)
    counts = np.bincount(tenths[inside], minlength=TENTHS)
    return rounded(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def by_function(rollouts: Rollouts) -> dict[str, list[float | None] | None]:
    """Each reward function's numbers; None where they are the reward itself."""
    columns = {}
    for name, column in zip(rollouts.reward_names, rollouts.rewards_by_function.T, strict=True):
        same = np.array_equal(column, rollouts.completion_rewards, equal_nan=True)
        columns[name] = None if same else rounded(column)
    return columns


def mean_over(
    array: Float[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"]
) -> Float[np.ndarray, " B"]:
    """Mean of each row's tokens; NaN for an empty row."""
    counts = mask.sum(1)
    sums = np.where(mask, array, 0.0).sum(1, dtype=np.float64)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def first_column(array: Float[np.ndarray, "B T"]) -> Float[np.ndarray, " B"]:
    return array[:, 0] if array.shape[1] else np.full(len(array), np.nan)


def rounded(array: np.ndarray, digits: int = 3) -> list[float | None]:
    return [one(x, digits) for x in np.asarray(array, dtype=np.float64)]


def one(x: float | None, digits: int = 3) -> float | int | None:
    """A short JSON number; None for NaN and infinities.

    >>> one(0.123456), one(1.0), one(float("nan"))
    (0.123, 1, None)
    """
    if x is None or not np.isfinite(x):
        return None
    short = float(f"{x:.{digits}g}")
    return int(short) if short == int(short) else short


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of an index.jsonl, one of each step and evaluation (the last: a resumed run writes
    a step again), by step. Lines that are none of ours are left out."""
    with Path(path).open("rb") as file:
        raw = file.read(MAX_BYTES).splitlines()
    lines = {}
    for text in raw:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # cut short by a kill, or not ours
        if is_line(line):
            lines[line["step"], bool(line.get("evaluation"))] = line
    return [lines[key] for key in sorted(lines)]


def is_line(line: Any) -> bool:
    """Whether a JSON value has the lists of an index line, of fitting lengths."""
    if not isinstance(line, dict) or not set(LINE_FIELDS) <= line.keys():
        return False
    if type(line["step"]) is not int or type(line["num_generations"]) is not int:
        return False
    lists = [line[name] for name in ("prompt_index", "reward", "length", "truncated")]
    if not all(isinstance(column, list) for column in lists):
        return False
    rows = len(line["reward"])
    return len(line["length"]) == rows == len(line["prompt_index"]) * line["num_generations"]


def rebuild(
    paths: Iterable[Path], load: Callable[[Path], tuple[Rollouts, Credit]] | None = None
) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """(file, its line) of each rollout file, one after the other; None for an unreadable one.

    Args:
        load: file -> rollouts and credit; without it `load_rollouts`, which trusts the file.
    """
    for path in paths:
        try:
            rollouts, credit = load(path) if load else _load(path)
        except (ValueError, OSError):
            yield path, None
            continue
        yield path, index_line(rollouts, credit, path.name.startswith("eval-"))


def _load(path: Path) -> tuple[Rollouts, Credit]:
    saved = load_rollouts(path)
    return saved.rollouts, saved.credit
