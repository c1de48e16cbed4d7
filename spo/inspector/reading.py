"""One Parquet file, distrusted -> `Step`.

Limits are checked on the file's footer before any column is decoded, text is decoded as a
dictionary so that a repeated string costs nothing until its size is known, and page checksums are
verified. Only the columns named here are read.
"""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spo.advantages import Credit, assign_credit
from spo.config import SPOConfig
from spo.rollouts import (
    CREDIT_FLOATS,
    METADATA_KEY,
    TOKEN_FLOATS,
    Rollouts,
    from_columns,
    read_metadata,
    schema,
)

MAX_ROWS = 16_384
MAX_VALUES = 1 << 22
"""Numbers per column, and cells of the padded (B, T) arrays."""
MAX_TEXT_BYTES = 64 << 20
MAX_BYTES = 1 << 28
"""Decompressed bytes per file, as its footer says."""

TEXT = ("prompt", "completion")
OPTIONAL = ("token_logprobs_ref", "token_values", "token_returns", "rewards_by_function")
CREDIT_FIELDS = (
    "entropy_percentile",
    "gamma",
    "lam",
    "lam_critic",
    "advantage_level",
    "normalize_advantages",
    "segment_value",
    "scale_rewards",
    "mask_truncated_completions",
    "kl_in_reward",
    "beta",
)
"""What `assign_credit` reads of a configuration. The rest of a saved one is not looked at, so that
files of other versions open."""

REDUCED_MISSING = (
    "token ids and text offsets",
    "entropies",
    "log-probs",
    "values",
    "segments",
    "token rewards",
    "training configuration",
)


UNREADABLE = (
    pa.ArrowException,
    OSError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    RecursionError,  # deeply nested metadata
)


@dataclass(eq=False)
class Step:
    """One step as the inspector sees it.

    Attributes:
        rollouts, credit: as saved. In reduced mode every completion is one pseudo-token that
            spans its text and carries the saved advantage.
        config: what the trainer used, as far as CREDIT_FIELDS go; None in reduced mode.
        missing: what the file does not hold, in words; not empty in reduced mode.
    """

    rollouts: Rollouts
    credit: Credit
    config: SPOConfig | None
    run_id: str
    missing: tuple[str, ...] = ()

    @cached_property
    def recomputed(self) -> Credit:
        """What `assign_credit` makes of the rollouts under the saved configuration.

        Raises:
            ValueError: the saved numbers cannot be cut (NaN entropies, uneven groups).
        """
        return assign_credit(self.rollouts, self.config)


def read_step(path: Path) -> Step:
    """Read and check one file; the last few stay in memory.

    Raises:
        ValueError: one sentence saying why the file cannot be shown.
    """
    stat = path.stat()
    return _read_step(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=3)
def _read_step(path: Path, mtime_ns: int, size: int) -> Step:
    try:
        names = pq.read_schema(path).names
        with pq.ParquetFile(
            path,
            read_dictionary=[name for name in TEXT if name in names],
            page_checksum_verification=True,
            pre_buffer=False,
        ) as file:
            return _read(file, path.name)
    except UNREADABLE as error:
        raise ValueError(f"{path.name} is damaged or no Parquet file: {error}") from error


def _read(file: pq.ParquetFile, name: str) -> Step:
    metadata = file.schema_arrow.metadata or {}
    if METADATA_KEY not in metadata:
        return _read_reduced(file, name)
    if not metadata[METADATA_KEY].startswith(b"{"):
        raise ValueError(f"{name}: its metadata is no JSON object.")
    details = _checked_details(read_metadata(metadata, name), name)
    found = set(file.schema_arrow.names)
    reward_names = _reward_names(file)
    expected = schema(reward_names)
    needed = [column for column in expected.names if column not in OPTIONAL]
    lacking = [column for column in needed if column not in found]
    if lacking:
        return _read_reduced(file, name, f"columns {', '.join(lacking)}")

    table = _bounded_table(file, [c for c in expected.names if c in found], name)
    columns = {}
    for field in expected:
        if field.name in found:
            columns[field.name] = table.column(field.name).cast(field.type)
        else:
            columns[field.name] = pa.chunked_array([pa.nulls(len(table), field.type)])
    _check_lengths(columns, name)
    _check_groups(details["num_generations"], len(table), name)
    saved = from_columns(columns, details)
    config = _config(saved.config, name)
    if config.kl_in_reward and saved.rollouts.token_logprobs_ref is None:
        raise ValueError(f"{name} has a KL in its rewards but no reference log-probs.")
    return Step(saved.rollouts, saved.credit, config, saved.run_id)


def _checked_details(details: dict, name: str) -> dict:
    """The file's own metadata with the types `from_columns` relies on."""
    kinds = {"num_generations": int, "run_id": str, "config": dict}
    for key, kind in kinds.items():
        if not isinstance(details.get(key), kind):
            raise ValueError(f"{name}: its metadata has no valid {key}.")
    threshold = details.get("entropy_threshold")
    details["entropy_threshold"] = threshold if isinstance(threshold, float) else None
    return details


def _config(saved: dict, name: str) -> SPOConfig:
    try:
        return SPOConfig(**{field: saved[field] for field in CREDIT_FIELDS if field in saved})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} carries a configuration this version rejects: {error}") from error


def _reward_names(file: pq.ParquetFile) -> list[str]:
    """The fields of rewards_by_function; none where it is no struct."""
    if "rewards_by_function" not in file.schema_arrow.names:
        return []
    kind = file.schema_arrow.field("rewards_by_function").type
    return [part.name for part in kind] if pa.types.is_struct(kind) else []


def _bounded_table(file: pq.ParquetFile, names: list[str], label: str) -> pa.Table:
    """The named columns, after the footer and the size of the text were found acceptable."""
    meta = file.metadata
    if meta.num_rows > MAX_ROWS:
        raise ValueError(f"{label} has {meta.num_rows} rows; the inspector reads {MAX_ROWS}.")
    values: dict[str, int] = {}
    total_bytes = 0
    for group in range(meta.num_row_groups):
        for index in range(meta.num_columns):
            chunk = meta.row_group(group).column(index)
            if chunk.path_in_schema.split(".")[0] in names:
                total_bytes += chunk.total_uncompressed_size
                values[chunk.path_in_schema] = (
                    values.get(chunk.path_in_schema, 0) + chunk.num_values
                )
    if total_bytes > MAX_BYTES or max(values.values(), default=0) > MAX_VALUES:
        raise ValueError(
            f"{label} would take {total_bytes >> 20} MiB, {max(values.values())} numbers in one "
            f"column; the inspector reads {MAX_BYTES >> 20} MiB and {MAX_VALUES} numbers."
        )
    table = file.read(columns=names)
    for column in set(TEXT) & set(names):
        if not pa.types.is_dictionary(table.column(column).type):
            raise ValueError(f"{label}: its column {column} is no text.")
        size = _text_bytes(table.column(column))
        if size > MAX_TEXT_BYTES:
            raise ValueError(
                f"{label} has {size >> 20} MiB of text in {column}; the inspector reads "
                f"{MAX_TEXT_BYTES >> 20} MiB."
            )
    return table


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a dictionary-encoded text column, were it expanded."""
    return sum(
        pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
        for chunk in column.chunks
    )


def _check_lengths(columns: dict[str, pa.ChunkedArray], name: str) -> None:
    """Every per-token column of a row has one number per token, or none in the whole file."""
    lengths = _list_lengths(columns["token_ids"])
    if len(lengths) * lengths.max(initial=0) > MAX_VALUES:
        raise ValueError(
            f"{name} pads to {len(lengths)} × {lengths.max()} tokens; the inspector reads "
            f"{MAX_VALUES}."
        )
    for column in ("token_ends", "segment_ids", *TOKEN_FLOATS, *CREDIT_FLOATS):
        absent = column in OPTIONAL and columns[column].null_count == len(lengths)
        if not absent and not np.array_equal(_list_lengths(columns[column]), lengths):
            raise ValueError(f"{name}: {column} has not one number per token.")
    for column in (*TEXT, "truncated", "prompt_index", "prompt_ids", "step"):
        if columns[column].null_count:
            raise ValueError(f"{name}: {column} has rows without a value.")


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return lengths.to_numpy().astype(np.int64)


def _check_groups(num_generations: int, rows: int, name: str) -> None:
    if num_generations < 1 or rows % num_generations:
        raise ValueError(f"{name}: {rows} rows do not form groups of {num_generations}.")


def _read_reduced(file: pq.ParquetFile, name: str, lacking: str = "") -> Step:
    """A file that holds texts but no tokens, such as TRL's completions_*.parquet.

    A group is a run of rows with one prompt. All numeric columns but `step` and `advantage` count
    as reward functions; the reward shown is their sum, as the file does not name the weights.
    """
    arrow_schema = file.schema_arrow
    if not set(TEXT) <= set(arrow_schema.names):
        raise ValueError(f"{name} holds no rollouts: it has no prompt and completion columns.")
    numeric = [
        field.name
        for field in arrow_schema
        if (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        and field.name not in ("step", "advantage", "prompt_index", "completion_index")
    ]
    has_advantage = "advantage" in arrow_schema.names
    wanted = [*TEXT, *numeric, *(["advantage"] if has_advantage else [])]
    table = _bounded_table(file, wanted, name)
    prompts = [text or "" for text in table.column("prompt").cast(pa.string()).to_pylist()]
    completions = [text or "" for text in table.column("completion").cast(pa.string()).to_pylist()]

    def numbers(column):
        return table.column(column).cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy()

    names = [column for column in numeric if column != "reward"]
    by_function = np.array([numbers(column) for column in names], dtype=np.float32)
    by_function = by_function.reshape(len(names), len(prompts)).T
    reward = numbers("reward") if "reward" in numeric else by_function.sum(1)
    advantage = numbers("advantage") if has_advantage else np.zeros(len(prompts), np.float32)
    rollouts = _text_rollouts(prompts, completions, reward, by_function, names)
    credit = Credit(rollouts.token_ids, np.nan_to_num(advantage)[:, None], None)
    missing = [*([lacking] if lacking else []), *REDUCED_MISSING]
    missing += [] if has_advantage else ["advantages"]
    return Step(rollouts, credit, None, "", tuple(missing))


def _text_rollouts(prompts, completions, reward, by_function, names) -> Rollouts:
    """Texts -> rollouts whose completions are one pseudo-token each."""
    one = np.zeros((len(prompts), 1), dtype=np.float32)
    sizes = [len(text.encode()) for text in completions]
    starts = [i for i, text in enumerate(prompts) if i == 0 or text != prompts[i - 1]]
    counts = np.diff([*starts, len(prompts)])
    even = len(set(counts.tolist())) == 1
    return Rollouts(
        step=0,
        num_generations=int(counts[0]) if even else 1,
        prompts=prompts,
        completions=completions,
        prompt_ids=[[] for _ in prompts],
        token_ids=one.astype(np.int64),
        completion_mask=one == 0,
        token_ends=np.array(sizes, dtype=np.int64).reshape(-1, 1),
        token_entropies=one,
        token_logprobs_old=one,
        token_logprobs_ref=None,
        token_values=None,
        token_rewards=one,
        completion_rewards=np.asarray(reward, dtype=np.float32),
        rewards_by_function=by_function,
        reward_names=names,
        truncated=one[:, 0] == 1,
        prompt_index=np.searchsorted(starts, np.arange(len(prompts)), side="right") - 1,
    )
