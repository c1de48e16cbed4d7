"""The rollouts of one step: a dataclass of numpy arrays, and its Parquet form.

Saved once per step with their credit (`save_rollouts`), read by the inspector and by
`datasets.load_dataset("parquet", ...)`. No pickle anywhere.

Axes: B completions, prompt-major in groups of `num_generations`; T completion tokens,
right-padded; F reward functions.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from spo.advantages import Credit

SCHEMA_VERSION = 1
METADATA_KEY = b"spo"
"""The file metadata entry that holds schema version, run id, threshold and config as JSON."""


@dataclass(frozen=True)
class Rollouts:
    """Everything known about one rollout batch once it is scored; frozen for all inner epochs.

    Attributes:
        prompts, completions: text, one per completion.
        prompt_ids: token ids of each prompt, ragged.
        token_ids: sampled tokens, 0 on padding.
        completion_mask: True at sampled tokens, the end token included.
        token_ends: end of each token in UTF-8 bytes of its completion; −1 on padding.
        token_entropies, token_logprobs_old: of the rollout policy at the sampling temperature.
        token_logprobs_ref: of the reference model, None when beta = 0.
        token_values: V(s_t) before token t, None without a critic.
        token_rewards: the weighted sum of all reward functions, per token.
        completion_rewards: the same per completion; NaN where unscorable.
        rewards_by_function: before weighting; NaN where a function returned None.
        truncated: True where the completion hit the length limit.
        prompt_index: row of the data set each prompt came from.
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

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def lengths(self) -> Int[np.ndarray, " B"]:
        """Completion tokens per row."""
        return self.completion_mask.sum(1)

    @property
    def ragged_token_ids(self) -> list[list[int]]:
        """Sampled tokens of each row, without padding."""
        return [row[:n].tolist() for row, n in zip(self.token_ids, self.lengths, strict=True)]

    def loss_mask(self, mask_truncated_completions: bool) -> Bool[np.ndarray, "B T"]:
        """The tokens that take part in losses, entropy ranking and statistics."""
        keep = ~np.isnan(self.completion_rewards)
        if mask_truncated_completions:
            keep &= ~self.truncated
        return self.completion_mask & keep[:, None]


@dataclass(frozen=True)
class SavedRollouts:
    """What `load_rollouts` returns: the rollouts, their credit, and the file's metadata."""

    rollouts: Rollouts
    credit: Credit
    config: dict[str, Any]
    run_id: str


TOKEN_FLOATS = (
    "token_entropies",
    "token_logprobs_old",
    "token_logprobs_ref",
    "token_values",
    "token_rewards",
)
CREDIT_FLOATS = ("token_advantages", "token_returns")


def schema(reward_names: list[str]):
    """The Parquet columns, one row per completion; rewards_by_function is a struct of floats."""
    import pyarrow as pa

    floats = pa.list_(pa.float32())
    return pa.schema(
        [
            ("step", pa.int64()),
            ("prompt_index", pa.int64()),
            ("completion_index", pa.int32()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("prompt_ids", pa.list_(pa.int32())),
            ("token_ids", pa.list_(pa.int32())),
            ("token_ends", pa.list_(pa.int32())),
            *((name, floats) for name in TOKEN_FLOATS),
            ("segment_ids", pa.list_(pa.int32())),
            *((name, floats) for name in CREDIT_FLOATS),
            ("reward", pa.float32()),
            ("rewards_by_function", pa.struct([(name, pa.float32()) for name in reward_names])),
            ("truncated", pa.bool_()),
        ]
    )


def save_rollouts(
    rollouts: Rollouts,
    path: str | os.PathLike,
    credit: Credit | None = None,
    config: Any = None,
    run_id: str = "",
) -> Path:
    """Write one step's rollouts and their credit; one row group per prompt.

    The file appears under its name only when it is whole: it is written beside it and renamed.
    With `credit=None` it is computed by `assign_credit(rollouts, config)`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from spo.advantages import assign_credit

    path = Path(path)
    config = _as_config(config)
    credit = credit or assign_credit(rollouts, config)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "entropy_threshold": credit.entropy_threshold,
        "num_generations": rollouts.num_generations,
        "config": config.to_dict(),
    }
    table = pa.Table.from_pydict(_columns(rollouts, credit), schema=schema(rollouts.reward_names))
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    float_lists = [f"{name}.list.element" for name in TOKEN_FLOATS + CREDIT_FLOATS]
    try:
        pq.write_table(
            table,
            temporary,
            row_group_size=rollouts.num_generations,
            compression="zstd",
            use_dictionary=["prompt", "prompt_ids.list.element", "token_ids.list.element"],
            column_encoding=dict.fromkeys(float_lists, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _as_config(config: Any):
    """A SPOConfig from None, a dict of its fields, or itself."""
    from spo.config import SPOConfig

    if config is None:
        return SPOConfig()
    return SPOConfig(**config) if isinstance(config, dict) else config


def _columns(rollouts: Rollouts, credit: Credit) -> dict[str, list]:
    """Padded arrays -> the ragged columns of `schema`."""
    lengths = rollouts.lengths

    def ragged(array):
        if array is None:
            return [None] * len(rollouts)
        return [row[:n] for row, n in zip(array, lengths, strict=True)]

    rewards = [
        {name: _or_null(x) for name, x in zip(rollouts.reward_names, row, strict=True)}
        for row in rollouts.rewards_by_function
    ]
    return {
        "step": [rollouts.step] * len(rollouts),
        "prompt_index": rollouts.prompt_index,
        "completion_index": np.arange(len(rollouts)) % rollouts.num_generations,
        "prompt": rollouts.prompts,
        "completion": rollouts.completions,
        "prompt_ids": rollouts.prompt_ids,
        "token_ids": ragged(rollouts.token_ids),
        "token_ends": ragged(rollouts.token_ends),
        **{name: ragged(getattr(rollouts, name)) for name in TOKEN_FLOATS},
        "segment_ids": ragged(credit.segment_ids),
        **{name: ragged(getattr(credit, name)) for name in CREDIT_FLOATS},
        "reward": [_or_null(x) for x in rollouts.completion_rewards],
        "rewards_by_function": rewards,
        "truncated": rollouts.truncated,
    }


def _or_null(x: float) -> float | None:
    return None if np.isnan(x) else x


def load_rollouts(path: str | os.PathLike) -> SavedRollouts:
    """Read a file of `save_rollouts`.

    Raises:
        ValueError: the file is no SPO rollout file, or of another schema version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    damage = (pa.ArrowException, OSError, KeyError, TypeError, OverflowError, RecursionError)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        metadata = read_metadata(table.schema.metadata, path)
        columns = {name: table.column(name) for name in table.column_names}
        return from_columns(columns, metadata)
    except FileNotFoundError:
        raise
    except damage as error:
        raise ValueError(f"{path} is damaged or no rollout file: {error}") from error


def read_metadata(schema_metadata: dict[bytes, bytes] | None, path: Any) -> dict[str, Any]:
    """The metadata `save_rollouts` wrote, its version checked."""
    if not schema_metadata or METADATA_KEY not in schema_metadata:
        raise ValueError(f"{path} is not a rollout file of SPO: it carries no 'spo' metadata.")
    metadata = json.loads(schema_metadata[METADATA_KEY])
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {metadata.get('schema_version')}; this code reads "
            f"version {SCHEMA_VERSION}."
        )
    return metadata


def from_columns(columns: dict[str, Any], metadata: dict[str, Any]) -> SavedRollouts:
    """Ragged Arrow columns (pyarrow ChunkedArrays by name) -> padded arrays.

    For readers that check a file before they trust it; `load_rollouts` trusts.
    """
    lengths = np.array([len(row) for row in columns["token_ids"]], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0))[None] < lengths[:, None]

    def padded(name, dtype, fill):
        if columns[name].null_count == len(lengths):
            return None
        array = np.full(mask.shape, fill, dtype=dtype)
        array[mask] = columns[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return array

    def scalars(name, dtype):
        return columns[name].to_numpy().astype(dtype)

    names = [field.name for field in columns["rewards_by_function"].type]
    by_function = columns["rewards_by_function"].to_pylist()
    rewards = [
        [np.nan if row[name] is None else row[name] for name in names] for row in by_function
    ]
    step = columns["step"][0].as_py() if len(lengths) else 0
    rollouts = Rollouts(
        step=step,
        num_generations=metadata["num_generations"],
        prompts=columns["prompt"].to_pylist(),
        completions=columns["completion"].to_pylist(),
        prompt_ids=columns["prompt_ids"].to_pylist(),
        token_ids=padded("token_ids", np.int64, 0),
        completion_mask=mask,
        token_ends=padded("token_ends", np.int64, -1),
        **{name: padded(name, np.float32, 0.0) for name in TOKEN_FLOATS},
        completion_rewards=scalars("reward", np.float32),
        rewards_by_function=np.array(rewards, dtype=np.float32).reshape(len(lengths), len(names)),
        reward_names=names,
        truncated=scalars("truncated", bool),
        prompt_index=scalars("prompt_index", np.int64),
    )
    credit = Credit(
        padded("segment_ids", np.int64, -1),
        padded("token_advantages", np.float32, 0.0),
        padded("token_returns", np.float32, 0.0),
        metadata["entropy_threshold"],
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

    def padded(name, dtype, fill=0):
        if records[0][name] is None:
            return None
        array = np.full(mask.shape, fill, dtype=dtype)
        array[mask] = np.concatenate([np.asarray(record[name], dtype) for record in records])
        return array

    def column(name):
        return [record[name] for record in records]

    return Rollouts(
        step=step,
        num_generations=num_generations,
        prompts=column("prompt"),
        completions=column("completion"),
        prompt_ids=column("prompt_ids"),
        token_ids=padded("token_ids", np.int64),
        completion_mask=mask,
        token_ends=padded("token_ends", np.int64, -1),
        **{name: padded(name, np.float32) for name in TOKEN_FLOATS},
        completion_rewards=np.array(column("reward"), dtype=np.float32),
        rewards_by_function=np.array(column("rewards_by_function"), dtype=np.float32),
        reward_names=reward_names,
        truncated=np.array(column("truncated"), dtype=bool),
        prompt_index=np.array(column("prompt_index"), dtype=np.int64),
    )


def select_rows(rollouts: Rollouts, rows: Any) -> Rollouts:
    """Only the given completions, by slice, mask or index array."""
    chosen = np.arange(len(rollouts))[rows]
    kept = {}
    for field in dataclasses.fields(rollouts):
        value = getattr(rollouts, field.name)
        if isinstance(value, np.ndarray):
            kept[field.name] = value[chosen]
        elif isinstance(value, list) and field.name != "reward_names":
            kept[field.name] = [value[i] for i in chosen]
    return dataclasses.replace(rollouts, **kept)
