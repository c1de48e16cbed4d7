"""Rollouts and credit -> tables of completions, for the terminal and for trackers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spo.rollouts import Credit, Rollouts


def for_terminal(step: int, rollouts: Rollouts, rows: Iterable[int]) -> str:
    """Prompt, completion, reward and what reward functions logged, of the given rows."""
    table = Table(box=box.SIMPLE_HEAD, title=f"step {step}", show_lines=True)
    table.add_column("prompt", ratio=2, max_width=30)
    table.add_column("completion", ratio=4)
    table.add_column("reward", justify="right", width=7)
    for name in rollouts.logged_columns:
        table.add_column(Text(name), max_width=20)
    for i in rows:
        logged = (_shortened(str(column[i]), 60) for column in rollouts.logged_columns.values())
        # Text, not str: markup in model output is shown, never interpreted
        table.add_row(
            Text(_ending(rollouts.prompts[i], 120)),
            Text(_shortened(rollouts.completions[i], 240)),
            f"{rollouts.completion_rewards[i]:.2f}",
            *map(Text, logged),
        )
    console = Console(width=min(Console().width, 100))
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def for_trackers(step: int, rollouts: Rollouts, credit: Credit) -> dict[str, list]:
    """Every completion, with the columns of TRL's table; `advantage` is the mean over its tokens,
    which are all the same without a critic."""
    counts = np.maximum(rollouts.actions.sum(1), 1)
    advantages = (credit.token_advantages * rollouts.actions).sum(1) / counts
    known = {
        "step": [step] * len(rollouts),
        "prompt": rollouts.prompts,
        "completion": rollouts.completions,
        **dict(zip(rollouts.reward_names, _or_none(rollouts.rewards_by_function.T), strict=True)),
        "reward": _or_none(rollouts.completion_rewards),
        "advantage": advantages.tolist(),
    }
    return {n: _of_one_kind(column) for n, column in rollouts.logged_columns.items()} | known


def send(tracker: Any, table: dict[str, list], step: int) -> None:
    """As "completions", where a tracker has tables: wandb and trackio."""
    import pandas

    if tracker.name == "wandb":
        tracker.log_table("completions", dataframe=pandas.DataFrame(table), step=step)
    elif tracker.name == "trackio":  # Accelerate's has no log_table
        import trackio

        tracker.log({"completions": trackio.Table(dataframe=pandas.DataFrame(table))}, step=step)


def _of_one_kind(column: list) -> list:
    """Numbers, or everything as text: a tracker's table refuses a mixture."""
    known = [value for value in column if value is not None]
    if all(isinstance(value, int | float) for value in known):
        return column
    return [None if value is None else str(value) for value in column]


def _or_none(numbers: np.ndarray) -> list:
    """Nested lists with None for NaN, which is no reward and not a bad one."""
    return np.where(np.isnan(numbers), None, numbers.astype(object)).tolist()


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _ending(text: str, limit: int) -> str:
    """Prompts begin alike and end in what is asked."""
    return text if len(text) <= limit else "…" + text[len(text) - limit + 1 :]
