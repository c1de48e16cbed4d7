"""Settings of the page -> recomputed credit; and the check of the saved credit. Pure.

Both call `spo.advantages.assign_credit`, the function that training called. The browser runs a
small twin of it (static/credit.js) for the instant answer and asks `recompute` when the slider
rests.
"""

import dataclasses
from typing import Any

import numpy as np

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.inspector.bounded import is_number
from spo.inspector.step import Step
from spo.inspector.views import group_rows, pack
from spo.rollouts import Credit

MODES = ("spo", "ppo", "grpo")
SETTINGS = ("entropy_percentile", "gamma", "lam", "advantage_level", "normalize_advantages")
TOLERANCE = 1e-5
"""Saved numbers are float32; a trainer's bug moves them by far more."""


def what_if(step: Step, settings: dict[str, Any]) -> Credit:
    """Credit under other settings: SPO as configured, PPO (p = 1) or GRPO (no critic, p = 0).

    Raises:
        ValueError: settings that no configuration may have.
    """
    if step.config is None:
        raise ValueError("This file holds no tokens, so credit cannot be recomputed.")
    mode = settings.get("mode", "spo")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is not one of {', '.join(MODES)}.")
    changes = {key: settings[key] for key in SETTINGS if key in settings}
    if mode != "spo":
        changes["entropy_percentile"] = 1.0 if mode == "ppo" else 0.0
    if changes.get("advantage_level") == "token":
        changes["segment_value"] = "start"
    rollouts = step.rollouts
    if mode == "grpo":
        rollouts = dataclasses.replace(rollouts, token_values=None)
    return assign_credit(rollouts, _config_with(step.config, changes))


def _config_with(config: SPOConfig, changes: dict[str, Any]) -> SPOConfig:
    for key, value in changes.items():
        expected = type(getattr(config, key))
        fits = is_number(value) if expected is float else type(value) is expected
        if not fits:
            raise ValueError(f"{key}={str(value)[:40]} is not a {expected.__name__}.")
    return dataclasses.replace(config, **changes)


def recompute(step: Step, group: int, settings: dict[str, Any]) -> dict[str, Any]:
    """`what_if` for the tokens of one group, for the page to compare or to draw."""
    credit = what_if(step, settings)
    rows = group_rows(step, group)
    mask = step.rollouts.completion_mask[rows]
    return {
        "segment_ids": pack(credit.segment_ids[rows][mask], "<i4"),
        "advantages": pack(credit.token_advantages[rows][mask]),
        "cut": credit.entropy_threshold,
    }


def check_saved(step: Step) -> dict[str, Any]:
    """The saved credit against `assign_credit` under the saved configuration.

    Returns:
        `state`: "verified", "differs" or "impossible"; with the largest difference and where it
        is (row of the step, token), and the number of tokens whose segment differs.
    """
    if step.config is None:
        return {"state": "impossible", "reason": "the file holds no tokens to recompute from"}
    try:
        recomputed = step.recomputed
    except ValueError as error:
        return {"state": "impossible", "reason": str(error)}
    moved = (recomputed.segment_ids != step.credit.segment_ids) & step.rollouts.completion_mask
    worst = {
        name: _largest_difference(getattr(step.credit, name), getattr(recomputed, name))
        for name in ("token_advantages", "token_returns")
    }
    name, (difference, row, token) = max(worst.items(), key=lambda item: item[1][0])
    verified = not moved.any() and difference <= TOLERANCE
    return {
        "state": "verified" if verified else "differs",
        "max_difference": difference if np.isfinite(difference) else None,
        "column": name,
        "row": row,
        "token": token,
        "segments_moved": int(moved.sum()),
    }


def badge(check: dict[str, Any], num_generations: int) -> dict[str, Any]:
    """The check in a word, in a sentence, and the place where the numbers differ most."""
    if check["state"] == "verified":
        words = "The saved advantages are those of assign_credit under the saved configuration"
        return {"text": "✓ verified", "title": words}
    if check["state"] == "impossible":
        return {"text": "not verifiable", "title": check["reason"]}
    size = check["max_difference"]
    group, completion = divmod(check["row"], num_generations)
    title = (
        f"{check['column']} differ most at prompt {group + 1}, completion {completion + 1}, token "
        f"{check['token'] + 1}; {check['segments_moved']} tokens lie in other segments. "
        "Click to go there."
    )
    return {
        "text": "differs" if size is None else f"differs by {size:.3g}",
        "title": title,
        "place": {"prompt": group, "completion": completion, "token": check["token"]},
    }


def _largest_difference(saved: np.ndarray | None, recomputed: np.ndarray | None):
    """(difference, row, token); relative to the recomputed number where that exceeds 1."""
    if saved is None and recomputed is None:
        return 0.0, 0, 0
    if saved is None or recomputed is None:
        return float("inf"), 0, 0
    scale = np.maximum(1.0, np.abs(recomputed))
    differences = np.nan_to_num(np.abs(saved - recomputed) / scale, nan=np.inf)
    if not differences.size:
        return 0.0, 0, 0
    row, token = np.unravel_index(np.argmax(differences), differences.shape)
    return float(differences[row, token]), int(row), int(token)
