"""What flows through a training step: completions, scored rollouts, credit; and how they are saved.

    Completions (ragged, one process) -> Rollouts (padded, all processes) -> Credit

Each is frozen, and no stage overwrites another's field. Plain numpy: importing this module imports
no torch.

Axes: B completions, prompt-major in groups of `num_generations`; T completion tokens,
right-padded; F reward functions.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.columns import CREDIT_FLOATS, TOKEN_FLOATS, credit_fields, rollout_fields, to_columns
from spo.completions import Completions
from spo.config import SPOConfig
from spo.parquet import METADATA_KEY, SCHEMA_VERSION, read_metadata, read_table, write_table

__all__ = [
    "CREDIT_FLOATS",
    "METADATA_KEY",
    "SCHEMA_VERSION",
    "TOKEN_FLOATS",
    "Completions",
    "Credit",
    "Rollouts",
    "SavedRollouts",
    "from_columns",
    "load_rollouts",
    "pad_rows",
    "read_metadata",
    "save_rollouts",
    "select_rows",
    "stack_rows",
]


@dataclass(frozen=True)
class Rollouts:
    """Everything known about one rollout batch once it is scored; frozen for all inner epochs.

    Attributes:
        prompts, completions: text, one per completion.
        prompt_ids: token ids of each prompt, ragged.
        token_ids: completion tokens, 0 on padding.
        completion_mask: True where a token exists, the end token included.
        token_ends: end of each token in UTF-8 bytes of its completion; −1 on padding.
        token_entropies, token_logprobs_old: of the rollout policy at the sampling temperature.
        token_logprobs_ref: of the reference model, None when beta = 0.
        token_values: V(s_t) before token t, None without a critic.
        token_rewards: the weighted sum of all reward functions, per token.
        completion_rewards: the same per completion; NaN where unscorable.
        rewards_by_function: before weighting; NaN where a function returned None.
        truncated: True where the completion hit the length limit.
        prompt_index: row of the data set each prompt came from.
        action_mask: True where the policy chose the token; None: wherever one exists.
        token_logprobs_sampler: of the engine that sampled, None where that was the policy itself.
        values_by_source: the terms of `token_values` by the name of their source.
        columns: of the data set, one entry per completion: what a value source may read, such as a
            reference solution; never what the policy sees.
        references: the right solution of each prompt that the critic read, None where it had none;
            None where it reads none at all.
        reference_origins: where each came from: the column's name, "peer" or "memory".
        logged_metrics, logged_columns: what reward functions logged beside their rewards.
        tool_calls, tool_failures: how many tools each completion called, and how many of them
            failed; None: there were none to call.
    """

    step: int
    num_generations: int
    prompts: list[str]
    completions: list[str]
    prompt_ids: list[list[int]]
    token_ids: Int[np.ndarray, "B T"]
    completion_mask: Bool[np.ndarray, "B T"]
    token_ends: Int[np.ndarray, "B T"]
    token_entropies: Float[np.ndarray, "B T"]
    token_logprobs_old: Float[np.ndarray, "B T"]
    token_logprobs_ref: Float[np.ndarray, "B T"] | None
    token_values: Float[np.ndarray, "B T"] | None
    token_rewards: Float[np.ndarray, "B T"]
    completion_rewards: Float[np.ndarray, " B"]
    rewards_by_function: Float[np.ndarray, "B F"]
    reward_names: list[str]
    truncated: Bool[np.ndarray, " B"]
    prompt_index: Int[np.ndarray, " B"]
    action_mask: Bool[np.ndarray, "B T"] | None = None
    token_logprobs_sampler: Float[np.ndarray, "B T"] | None = None
    values_by_source: dict[str, Float[np.ndarray, "B T"]] = field(default_factory=dict)
    columns: dict[str, list] = field(default_factory=dict)
    references: list[str | None] | None = None
    reference_origins: list[str | None] | None = None
    logged_metrics: dict[str, float] = field(default_factory=dict)
    logged_columns: dict[str, list] = field(default_factory=dict)
    tool_calls: Int[np.ndarray, " B"] | None = None
    tool_failures: Int[np.ndarray, " B"] | None = None

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def lengths(self) -> Int[np.ndarray, " B"]:
        """Completion tokens per row."""
        return self.completion_mask.sum(1)

    @property
    def ragged_token_ids(self) -> list[list[int]]:
        """Completion tokens of each row, without padding."""
        return [row[:n].tolist() for row, n in zip(self.token_ids, self.lengths, strict=True)]

    @property
    def actions(self) -> Bool[np.ndarray, "B T"]:
        """The tokens that the policy chose."""
        return self.completion_mask if self.action_mask is None else self.action_mask

    @property
    def scored(self) -> Bool[np.ndarray, " B"]:
        """The completions that have a reward."""
        return ~np.isnan(self.completion_rewards)

    def rows_in_loss(self, mask_truncated_completions: bool) -> Bool[np.ndarray, " B"]:
        """The completions that teach: scored, and not truncated where those are masked."""
        return self.scored & ~self.truncated if mask_truncated_completions else self.scored

    def loss_mask(self, mask_truncated_completions: bool) -> Bool[np.ndarray, "B T"]:
        """The tokens that take part in losses, entropy ranking and statistics."""
        return self.actions & self.rows_in_loss(mask_truncated_completions)[:, None]

    def with_values(self, values_by_source: dict[str, Float[np.ndarray, "B T"]]) -> "Rollouts":
        """The same with the critic's values, whose sum `token_values` is; none: no critic."""
        if not values_by_source:
            return self
        total = sum(values_by_source.values())
        return dataclasses.replace(self, token_values=total, values_by_source=values_by_source)


@dataclass(frozen=True)
class Credit:
    """What `spo.advantages.assign_credit` decides, completion-aligned (B, T).

    Attributes:
        segment_ids: int64, −1 on padding.
        token_advantages: float32, 0 outside the loss.
        token_returns: float32 targets of the critic, None without one.
        entropy_threshold: the lowest entropy (nats) that started a segment, None if none did.
    """

    segment_ids: Int[np.ndarray, "B T"]
    token_advantages: Float[np.ndarray, "B T"]
    token_returns: Float[np.ndarray, "B T"] | None
    entropy_threshold: float | None = None


NEEDED = ("token_ends", "token_entropies", "token_logprobs_old", "token_rewards")
NEEDED += ("segment_ids", "token_advantages")
"""Token columns that every rollout file has."""


@dataclass(frozen=True)
class SavedRollouts:
    """What `load_rollouts` returns: the rollouts, their credit, and the file's metadata."""

    rollouts: Rollouts
    credit: Credit
    config: dict[str, Any]
    run_id: str


def save_rollouts(
    rollouts: Rollouts,
    path: str | os.PathLike,
    credit: Credit,
    config: SPOConfig | None = None,
    run_id: str = "",
) -> Path:
    """Write one step's rollouts, their credit, and the columns that `config.saved_columns` names;
    one row group per prompt.

    The file appears under its name only when it is whole: it is written beside it and renamed.
    """
    config = config or SPOConfig()
    names = config.saved_columns
    chosen = {name: rollouts.columns[name] for name in names if name in rollouts.columns}
    chosen |= rollouts.logged_columns
    parts = {**vars(rollouts), **vars(credit), "columns": chosen}
    columns, schema, kinds = to_columns(parts, rollouts.lengths)
    metadata = {
        "run_id": run_id,
        "entropy_threshold": credit.entropy_threshold,
        "num_generations": rollouts.num_generations,
        "config": config.to_dict(),
    }
    group_size = rollouts.num_generations
    return write_table(Path(path), columns, schema, kinds | metadata, group_size)


def load_rollouts(path: str | os.PathLike) -> SavedRollouts:
    """Read a file of `save_rollouts`.

    Raises:
        ValueError: the file is no SPO rollout file, a damaged one, or of another schema version.
    """
    import pyarrow as pa

    damage = (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError)
    try:
        saved = from_columns(*read_table(path))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, MemoryError, json.JSONDecodeError, *damage) as error:
        raise ValueError(f"{path} is damaged or no rollout file: {error}") from error
    parts = vars(saved.rollouts) | vars(saved.credit)
    if lacking := [name for name in NEEDED if parts[name] is None]:
        raise ValueError(f"{path} is damaged or holds no completion: no {', '.join(lacking)}.")
    group, step = saved.rollouts.num_generations, saved.rollouts.step
    if type(group) is not int or group < 1 or step is None or not isinstance(saved.config, dict):
        raise ValueError(f"{path} is damaged: its step, num_generations or config is none.")
    return saved


def from_columns(columns: dict[str, Any], metadata: dict[str, Any]) -> SavedRollouts:
    """Ragged Arrow columns (pyarrow ChunkedArrays by name) -> padded arrays.

    For readers that check a file before they trust it; `load_rollouts` trusts.
    """
    rollouts = Rollouts(**rollout_fields(columns, metadata))
    credit = Credit(
        **credit_fields(columns, rollouts.completion_mask),
        entropy_threshold=metadata["entropy_threshold"],
    )
    return SavedRollouts(rollouts, credit, metadata["config"], metadata["run_id"])


def stack_rows(
    records: list[dict[str, Any]], *, step: int, num_generations: int, reward_names: list[str]
) -> Rollouts:
    """Per-completion records, as the processes gather them -> one padded rollout batch.

    A record holds the fields of `Rollouts`, each for one completion: token columns as sequences
    of its length (or None for a whole column that does not exist), the rest as scalars.
    """
    lengths = np.array([len(record["token_ids"]) for record in records])
    mask = np.arange(lengths.max(initial=0))[None] < lengths[:, None]

    def stacked(name, dtype, fill=0):
        if records[0].get(name) is None:
            return None
        array = np.full(mask.shape, fill, dtype=dtype)
        array[mask] = np.concatenate([np.asarray(record[name], dtype) for record in records])
        return array

    def column(name):
        return [record[name] for record in records]

    def counts(name):
        return np.array(column(name)) if name in records[0] else None

    kept = [record.get("columns", {}) for record in records]
    return Rollouts(
        step=step,
        num_generations=num_generations,
        prompts=column("prompt"),
        completions=column("completion"),
        prompt_ids=column("prompt_ids"),
        token_ids=stacked("token_ids", np.int64),
        completion_mask=mask,
        token_ends=stacked("token_ends", np.int64, -1),
        **{name: stacked(name, np.float32) for name in TOKEN_FLOATS},
        completion_rewards=np.array(column("reward"), dtype=np.float32),
        rewards_by_function=np.array(column("rewards_by_function"), dtype=np.float32),
        reward_names=reward_names,
        truncated=np.array(column("truncated"), dtype=bool),
        prompt_index=np.array(column("prompt_index"), dtype=np.int64),
        action_mask=stacked("action_mask", bool),
        token_logprobs_sampler=stacked("token_logprobs_sampler", np.float32),
        columns={name: [row[name] for row in kept] for name in kept[0]},
        tool_calls=counts("tool_calls"),
        tool_failures=counts("tool_failures"),
    )


def pad_rows(
    rows: Sequence[Sequence[float] | np.ndarray], mask: Bool[np.ndarray, "B T"]
) -> Float[np.ndarray, "B T"]:
    """Ragged numbers, one for each masked token, laid out as the mask; 0 elsewhere."""
    found = np.zeros(mask.shape)
    found[mask] = np.concatenate(rows)
    return found


def select_rows(rollouts: Rollouts, rows: Any) -> Rollouts:
    """Only the given completions, by slice, mask or index array."""
    chosen = np.arange(len(rollouts))[rows]
    kept = {}
    for name, value in vars(rollouts).items():
        if isinstance(value, np.ndarray):
            kept[name] = value[chosen]
        elif isinstance(value, list) and name != "reward_names":
            kept[name] = [value[i] for i in chosen]
        elif name == "values_by_source":
            kept[name] = {source: array[chosen] for source, array in value.items()}
        elif name in ("columns", "logged_columns"):
            kept[name] = {column: [entries[i] for i in chosen] for column, entries in value.items()}
    return dataclasses.replace(rollouts, **kept)
