"""`Step` -> the plain dictionaries the page draws. Pure: no file, no Gradio.

Numbers per token travel as base64 of little-endian float32 or int32, everything else as JSON;
NaN becomes None, so that the answer is JSON everywhere.

Axes: B completions of the step, N tokens of the chosen completions one after the other.
"""

import base64
import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spo.advantages import completion_advantages, rewards_in_loss
from spo.inspector.bounded import is_number
from spo.inspector.references import reference_view
from spo.inspector.step import CREDIT_FIELDS, Step
from spo.inspector.text import char_ends, parts_of_characters
from spo.inspector.turns import last_words, turns
from spo.rollouts import Credit
from spo.segments import segment, segment_starts

MAX_BROWSER_TOKENS = 1 << 20
"""Steps up to this size are sent whole, so that the browser can recompute credit by itself."""

MEASURES = ("advantage", "entropy", "logprob", "value", "gap")
SCALE_PERCENTILE = 95


def pack(array: np.ndarray | None, dtype: str = "<f4") -> str | None:
    """Base64 of an array, as the page's `data.js` unpacks it.

    >>> pack(np.array([1.0]))
    'AACAPw=='
    """
    if array is None:
        return None
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype)).decode()


def number(x: float) -> float | None:
    """A JSON number, or None for NaN and infinities."""
    return float(x) if np.isfinite(x) else None


def group_rows(step: Step, group: int) -> slice:
    """The rows of one prompt group.

    Raises:
        ValueError: there is no such group.
    """
    starts = group_starts(step)
    if not 0 <= group < len(starts):
        raise ValueError(f"This step has {len(starts)} prompts; there is no prompt {group + 1}.")
    return slice(int(starts[group]), int([*starts, len(step.rollouts)][group + 1]))


def group_starts(step: Step) -> np.ndarray:
    """First row of each prompt group; in reduced mode groups may differ in size."""
    index = step.rollouts.prompt_index
    if step.config is None:
        return np.flatnonzero(np.diff(index, prepend=-1))
    return np.arange(0, len(index), step.rollouts.num_generations)


def row_statistics(step: Step) -> dict[str, np.ndarray]:
    """Per completion (B,): what tables show."""
    rollouts, credit = step.rollouts, step.credit
    magnitudes = np.abs(np.nan_to_num(credit.token_advantages))
    return {
        "reward": rollouts.completion_rewards,
        "length": rollouts.lengths,
        "segments": segment_starts(credit.segment_ids).sum(1),
        "advantage": magnitudes.max(axis=1, initial=0.0),
    }


def completion_brief(step: Step, statistics: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    """One line of the list."""
    rollouts = step.rollouts
    group = int(np.searchsorted(group_starts(step), row, side="right")) - 1
    return {
        "group": group,
        "completion": row - group_rows(step, group).start,
        "prompt": last_words(rollouts.prompts[row]),
        "text": rollouts.completions[row][:160],
        "truncated": bool(rollouts.truncated[row]),
        **{key: number(column[row]) for key, column in statistics.items()},
    }


def bound(query: dict[str, Any], key: str) -> float | None:
    """A number of the query; absent, empty and None mean no bound.

    Raises:
        ValueError: it is something else.
    """
    value = query.get(key)
    if value is None or value == "":
        return None
    if not is_number(value):
        raise ValueError(f"{key}={str(value)[:40]} is not a number.")
    return float(value)


def matches(texts: list[str] | pa.Array, pattern: str) -> np.ndarray:
    """Where an RE2 pattern occurs.

    Raises:
        ValueError: the pattern is no valid RE2.
    """
    try:
        array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
        found = pc.match_substring_regex(array, pattern)
    except pa.ArrowInvalid as error:
        raise ValueError(f"The pattern is not valid: {error}") from error
    return found.to_numpy(zero_copy_only=False)


def step_summary(step: Step) -> dict[str, Any]:
    """Everything about a step that is not about one prompt."""
    rollouts = step.rollouts
    config = {key: getattr(step.config, key) for key in CREDIT_FIELDS} if step.config else None
    return {
        "groups": len(group_starts(step)),
        "config": config,
        "missing": list(step.missing),
        "has_values": rollouts.token_values is not None,
        "cut": step.credit.entropy_threshold,
        "in_browser": fits_browser(step),
        "scales": scales(step),
        "percentile": SCALE_PERCENTILE,
        "best": best_place(step) if len(rollouts) else {},
    }


def measure(step: Step, credit: Credit, name: str) -> np.ndarray | None:
    """The (B, T) numbers that a colour shows; None where the step has none.

    Raises:
        ValueError: there is no such measure.
    """
    rollouts = step.rollouts
    match name:
        case "advantage":
            return credit.token_advantages
        case "entropy":
            return rollouts.token_entropies
        case "logprob":
            return rollouts.token_logprobs_old
        case "value":
            return rollouts.token_values
        case "gap":
            reference = rollouts.token_logprobs_ref
            return None if reference is None else rollouts.token_logprobs_old - reference
    raise ValueError(f"colour={str(name)[:40]} is not one of {', '.join(MEASURES)}.")


def scales(step: Step) -> dict[str, float]:
    """Where each measure's colours end: the SCALE_PERCENTILE of its size over the whole step.

    The largest number of a step would leave most completions white; what lies beyond is drawn in
    the last colour, and the legend says so.
    """
    ends = {}
    for name in MEASURES:
        array = measure(step, step.credit, name)
        sizes = np.abs(array[step.rollouts.completion_mask]) if array is not None else np.zeros(0)
        sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
        if sizes.size:
            ends[name] = float(np.percentile(sizes, SCALE_PERCENTILE))
    return ends


def best_place(step: Step) -> dict[str, int]:
    """Where to begin reading: the prompt with the widest rewards, and there the token that starts
    the segment with the largest |A|."""
    rewards = step.rollouts.completion_rewards
    starts = group_starts(step)
    spread = [
        np.ptp(known) if (known := part[np.isfinite(part)]).size else -1.0
        for part in np.split(rewards, starts[1:])
    ]
    prompt = int(np.argmax(spread))
    rows = group_rows(step, prompt)
    sizes = np.abs(np.nan_to_num(step.credit.token_advantages[rows]))
    sizes = np.where(step.rollouts.completion_mask[rows], sizes, -1.0)
    if not sizes.size:
        return {"prompt": prompt, "completion": 0, "token": -1}
    completion, token = np.unravel_index(np.argmax(sizes), sizes.shape)
    reduced = step.config is None
    return {
        "prompt": prompt,
        "completion": int(completion),
        "token": -1 if reduced else int(token),
    }


def fits_browser(step: Step) -> bool:
    """Whether the page recomputes credit itself; else it asks the server for every answer."""
    return step.config is not None and int(step.rollouts.lengths.sum()) <= MAX_BROWSER_TOKENS


def calibration(step: Step, bins: int = 10) -> list[dict[str, float]]:
    """V at segment starts against the completion's final reward, in equally filled bins.

    A calibrated critic (γ = 1, no KL in the reward) has mean value = mean reward in every bin.
    """
    rollouts = step.rollouts
    if rollouts.token_values is None:
        return []
    starts = segment_starts(step.credit.segment_ids)
    starts &= ~np.isnan(rollouts.completion_rewards)[:, None]
    values = rollouts.token_values[starts]
    rewards = np.broadcast_to(rollouts.completion_rewards[:, None], starts.shape)[starts]
    if not values.size:
        return []
    order = np.argsort(values, kind="stable")
    return [
        {
            "low": number(values[part[0]]),
            "high": number(values[part[-1]]),
            "value": number(values[part].mean()),
            "reward": number(rewards[part].mean()),
            "count": len(part),
        }
        for part in np.array_split(order, bins)
        if len(part)
    ]


def group_view(step: Step, group: int, rows: list[int] | None = None) -> dict[str, Any]:
    """One prompt and its completions, token by token.

    Args:
        rows: completions of the group to keep, by position in the group; None: all.
    """
    block = group_rows(step, group)
    chosen = np.arange(block.start, block.stop)
    if rows is not None:
        chosen = chosen[[row for row in sorted(set(rows)) if 0 <= row < len(chosen)]]
    rollouts, credit = step.rollouts, step.credit
    mask = rollouts.completion_mask[chosen]

    def tokens(array, dtype="<f4"):
        return None if array is None else pack(array[chosen][mask], dtype)

    by_source = rollouts.values_by_source if len(rollouts.values_by_source) > 1 else {}

    return {
        "group": group,
        "prompt": rollouts.prompts[block.start],
        "turns": [
            *turns(rollouts.prompts[block.start]),
            *({"role": name, "text": rows[block.start]} for name, rows in step.beside.items()),
        ],
        "prompt_index": int(rollouts.prompt_index[block.start]),
        "has_tokens": step.config is not None,
        **forks([rollouts.token_ids[row, : rollouts.lengths[row]] for row in chosen]),
        "completions": [_completion(step, int(row), block.start) for row in chosen],
        "token_ids": tokens(rollouts.token_ids, "<i4"),
        "entropies": tokens(rollouts.token_entropies),
        "logprobs": tokens(rollouts.token_logprobs_old),
        "logprobs_ref": tokens(rollouts.token_logprobs_ref),
        "values": tokens(rollouts.token_values),
        "values_by_source": {name: tokens(array) for name, array in by_source.items()},
        "actions": tokens(rollouts.action_mask, "u1"),
        "token_rewards": tokens(rollouts.token_rewards),
        "segment_ids": tokens(credit.segment_ids, "<i4"),
        "advantages": tokens(credit.token_advantages),
        "returns": tokens(credit.token_returns),
    }


def forks(rows: list[np.ndarray]) -> dict[str, Any]:
    """How many tokens all rows begin with, and where each leaves its closest neighbour."""
    lengths = [
        [common_prefix(a, b) for j, b in enumerate(rows) if j != i] for i, a in enumerate(rows)
    ]
    everything = [length for others in lengths for length in others]
    return {
        "shared": min(everything, default=0),
        "forks": [max(others, default=-1) for others in lengths],
    }


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if differs.size else size


def _completion(step: Step, row: int, first: int) -> dict[str, Any]:
    rollouts = step.rollouts
    length = int(rollouts.lengths[row])
    text = rollouts.completions[row]
    ends = char_ends(text, rollouts.token_ends[row, :length], utf16=True)
    return {
        "completion": row - first,
        "row": row,
        "text": text,
        "ends": pack(ends, "<i4"),
        "parts": parts_of_characters(text, rollouts.token_ends[row, :length]),
        "length": length,
        "reward": number(rollouts.completion_rewards[row]),
        "rewards": {
            name: number(x)
            for name, x in zip(
                rollouts.reward_names, rollouts.rewards_by_function[row], strict=True
            )
        },
        "truncated": bool(rollouts.truncated[row]),
        "reference": reference_view(step, row),
    }


def credit_inputs(step: Step) -> dict[str, Any]:
    """What the browser's twin of `assign_credit` needs: every completion of the step, (N,).

    Rewards come less the KL penalty where `kl_in_reward`; only those that are not zero are sent.
    """
    rollouts, config = step.rollouts, step.config
    mask = rollouts.completion_mask
    rewards = rewards_in_loss(rollouts, config)[mask]
    nonzero = np.flatnonzero(rewards)
    in_loss = rollouts.loss_mask(config.mask_truncated_completions).any(1)
    starts = segment_starts(step.credit.segment_ids)
    return {
        "lengths": pack(rollouts.lengths, "<i4"),
        "in_loss": pack(in_loss, "<i4"),
        "row_advantages": pack(completion_advantages(rollouts, config)),
        "actions": pack(None if rollouts.action_mask is None else rollouts.actions[mask], "u1"),
        "entropies": pack(rollouts.token_entropies[mask]),
        "values": None if rollouts.token_values is None else pack(rollouts.token_values[mask]),
        "reward_positions": pack(nonzero, "<i4"),
        "reward_values": pack(rewards[nonzero]),
        "boundaries": None if cut_by_entropy(step) else pack(starts[mask], "u1"),
    }


def cut_by_entropy(step: Step) -> bool:
    """Whether the saved segments are those of the entropy rule, which the browser knows; segments
    of any other rule are sent as they are."""
    ids = segment(step.rollouts, dataclasses.replace(step.config, segmentation="entropy"))
    return np.array_equal(ids, step.credit.segment_ids)
