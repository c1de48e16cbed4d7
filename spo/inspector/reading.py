"""One Parquet file, distrusted -> `Step`, or the one prompt of it that is being read.

Limits are checked on the file's footer before any column is decoded (bounded.py), page checksums
are verified, and only the columns named here are read. Files without tokens go to foreign.py.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spo.columns import (
    COLUMNS,
    CREDIT_FLOATS,
    OPTIONAL,
    TOKEN_FLOATS,
    VALUES_BY_SOURCE,
    is_text,
    schema,
    struct_fields,
)
from spo.config import SPOConfig
from spo.inspector import bounded
from spo.inspector.bounded import (
    TEXT,
    UNREADABLE,
    TooLarge,
    bounded_table,
    is_number,
    list_lengths,
    open_parquet,
)
from spo.inspector.foreign import read_reduced
from spo.inspector.step import CREDIT_FIELDS, Group, Step
from spo.rollouts import METADATA_KEY, from_columns, read_metadata
from spo.values.alignment import ITEMS

EXPECTED = schema([])
MAY_LACK = ("token_logprobs_ref", "token_values", "token_returns", "rewards_by_function")
"""Columns that the trainer always writes, and that may be null or missing."""
MAX_SAVED_COLUMNS = 16
"""Columns of the data set saved beside the rollouts, such as the reference answer."""
MAX_SOURCES = 16
NEEDED = tuple(name for name in EXPECTED.names if name not in MAY_LACK)


def read_step(path: Path) -> Step:
    """Read and check one file; the last few stay in memory.

    Raises:
        TooLarge: the whole step exceeds the limits; `read_group` may still read its prompts.
        ValueError: one sentence saying why the file cannot be shown.
    """
    stat = path.stat()
    return _read_step(path, stat.st_mtime_ns, stat.st_size)


def read_group(path: Path, group: int) -> Group:
    """One prompt of a step. Only its row group is read where the file has one for each prompt.

    Raises:
        ValueError: one sentence saying why it cannot be shown.
    """
    stat = path.stat()
    return _read_group(path, group, stat.st_mtime_ns, stat.st_size)


def readable(paths: Iterable[Path]) -> Iterator[Step]:
    """The steps that can be read and hold tokens."""
    for path in paths:
        try:
            step = read_step(path)
        except ValueError:
            continue  # the reader says why when it is opened
        if step.config is not None:
            yield step


def count_groups(path: Path) -> int | None:
    """How many prompts a file has a row group for; None where prompts share row groups."""
    with _opened(path) as file:
        return file.metadata.num_row_groups if _one_prompt_each(file) else None


class _opened:
    """The Parquet file, closed at the end; what pyarrow raises becomes one sentence."""

    def __init__(self, path: Path, texts: list[str] | None = None):
        self.path, self.texts = path, texts

    def __enter__(self) -> pq.ParquetFile:
        try:
            self.file = open_parquet(self.path, self.texts)
        except UNREADABLE as error:
            raise self._refusal(error) from error
        return self.file

    def __exit__(self, kind, error, trace):
        self.file.close()
        if isinstance(error, UNREADABLE):
            raise self._refusal(error) from error

    def _refusal(self, error: BaseException) -> ValueError:
        return ValueError(f"{self.path.name} is damaged or no Parquet file: {error}")


@lru_cache(maxsize=3)
def _read_step(path: Path, mtime_ns: int, size: int) -> Step:
    with _opened(path) as file:
        return _read(file, path.name)


@lru_cache(maxsize=16)
def _read_group(path: Path, group: int, mtime_ns: int, size: int) -> Group:
    with _opened(path) as file:
        if not _one_prompt_each(file):
            return Group(read_step(path), group, 0)
        groups = file.metadata.num_row_groups
        if not 0 <= group < groups:
            raise ValueError(f"This step has {groups} prompts; there is no prompt {group + 1}.")
        step = _read(file, path.name, group)
        return Group(step, 0, group * file.metadata.row_group(0).num_rows)


def _one_prompt_each(file: pq.ParquetFile) -> bool:
    """Whether every row group is one prompt, as the trainer writes them."""
    metadata = file.schema_arrow.metadata or {}
    if not metadata.get(METADATA_KEY, b"").startswith(b"{"):
        return False
    try:
        expected = read_metadata(metadata, "").get("num_generations")
    except ValueError:
        return False
    meta = file.metadata
    sizes = {meta.row_group(i).num_rows for i in range(meta.num_row_groups)}
    return _lacking(file.schema_arrow) == [] and sizes == {expected}


def _lacking(arrow: pa.Schema) -> list[str]:
    """The columns a rollout file must have and this one has not."""
    found = set(arrow.names)
    return [name for name in NEEDED if name not in found]


def _read(file: pq.ParquetFile, name: str, group: int | None = None) -> Step:
    """The whole file, or one row group of it."""
    metadata = file.schema_arrow.metadata or {}
    if METADATA_KEY not in metadata:
        return read_reduced(file, name)
    if not metadata[METADATA_KEY].startswith(b"{"):
        raise ValueError(f"{name}: its metadata is no JSON object.")
    details = _checked_details(read_metadata(metadata, name), name)
    lacking = _lacking(file.schema_arrow)
    if lacking:
        return read_reduced(file, name, f"columns {', '.join(lacking)}")

    for column in TEXT:
        if not is_text(file.schema_arrow.field(column).type):
            raise ValueError(f"{name}: its column {column} is no text.")
    expected = _expected(file)
    saved_columns = [
        field.name
        for field in file.schema_arrow
        if field.name not in expected.names and is_text(field.type)
    ][:MAX_SAVED_COLUMNS]
    found = set(file.schema_arrow.names)
    wanted = [column for column in expected.names if column in found]
    table = bounded_table(file, [*wanted, *saved_columns], name, group)
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
    beside = {column: as_strings(table.column(column)) for column in saved_columns}
    beside |= {column: as_strings(x) for column, x in _fields(columns, COLUMNS).items()}
    items = saved.config.get("value_reference_items")
    items = [kind for kind in ITEMS if isinstance(items, list) and kind in items]
    rest = {"beside": beside, "reference_items": tuple(items)}
    return Step(saved.rollouts, saved.credit, config, saved.run_id, **rest)


def _expected(file: pq.ParquetFile) -> pa.Schema:
    """The columns to read of a file, with their types; a struct of something else is left out."""
    arrow = file.schema_arrow
    sources = _struct_names(arrow, VALUES_BY_SOURCE, is_floats, MAX_SOURCES)
    saved = _struct_names(arrow, COLUMNS, is_text, MAX_SAVED_COLUMNS)
    optional = [name for name in OPTIONAL if name in arrow.names]
    return schema(_reward_names(file), optional, sources, saved)


def is_floats(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)


def _struct_names(arrow: pa.Schema, name: str, is_fit, most: int) -> list[str]:
    """The fields of a struct column; none where there are too many or they do not fit."""
    kind = arrow.field(name).type if name in arrow.names else None
    if kind is None or not pa.types.is_struct(kind) or kind.num_fields > most:
        return []
    return [part.name for part in kind] if all(is_fit(part.type) for part in kind) else []


def _fields(columns: dict[str, pa.ChunkedArray], name: str) -> dict[str, pa.ChunkedArray]:
    return struct_fields(columns[name]) if name in columns else {}


def as_strings(column: pa.ChunkedArray) -> list[str]:
    return [text or "" for text in column.cast(pa.string()).to_pylist()]


def _checked_details(details: dict, name: str) -> dict:
    """The file's own metadata with the types `from_columns` relies on."""
    kinds = {"num_generations": int, "run_id": str, "config": dict}
    for key, kind in kinds.items():
        if type(details.get(key)) is not kind:  # true is no number
            raise ValueError(f"{name}: its metadata has no valid {key}.")
    threshold = details.get("entropy_threshold")
    details["entropy_threshold"] = float(threshold) if is_number(threshold) else None
    sources = details.get("value_sources")
    is_names = isinstance(sources, list) and all(isinstance(x, str) for x in sources)
    # the page shows a column's text: nothing is decoded that a stranger wrote
    return details | {"value_sources": sources if is_names else [], "json_columns": []}


def _config(saved: dict, name: str) -> SPOConfig:
    fields = {field: saved[field] for field in CREDIT_FIELDS if field in saved}
    for field, value in fields.items():
        kind = type(getattr(SPOConfig, field))
        if not (is_number(value) if kind is float else type(value) is kind):
            raise ValueError(f"{name}: its configuration has no valid {field}.")
    try:
        return SPOConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} carries a configuration this version rejects: {error}") from error


def _reward_names(file: pq.ParquetFile) -> list[str]:
    """The fields of rewards_by_function; none where it is no struct."""
    if "rewards_by_function" not in file.schema_arrow.names:
        return []
    kind = file.schema_arrow.field("rewards_by_function").type
    return [part.name for part in kind] if pa.types.is_struct(kind) else []


def _check_lengths(columns: dict[str, pa.ChunkedArray], name: str) -> None:
    """Every per-token column of a row has one number per token, or none in the whole file."""
    lengths = list_lengths(columns["token_ids"])
    if len(lengths) * lengths.max(initial=0) > bounded.MAX_VALUES:
        raise TooLarge(
            f"{name} pads to {len(lengths)} × {lengths.max()} tokens; the inspector reads "
            f"{bounded.MAX_VALUES}."
        )
    tokens = {column: columns[column] for column in ("token_ends", "segment_ids", *CREDIT_FLOATS)}
    more = (*TOKEN_FLOATS, "action_mask", "token_logprobs_sampler")
    tokens |= {column: columns[column] for column in more if column in columns}
    by_source = _fields(columns, VALUES_BY_SOURCE)
    for column, numbers in (tokens | by_source).items():
        may_lack = column not in NEEDED
        absent = may_lack and numbers.null_count == len(lengths)
        if not absent and not np.array_equal(list_lengths(numbers), lengths):
            raise ValueError(f"{name}: {column} has not one number per token.")
        if numbers.combine_chunks().flatten().null_count:
            raise ValueError(f"{name}: {column} holds nulls among its numbers.")
    for column in (*TEXT, "truncated", "prompt_index", "prompt_ids", "step"):
        if columns[column].null_count:
            raise ValueError(f"{name}: {column} has rows without a value.")


def _check_groups(num_generations: int, rows: int, name: str) -> None:
    if num_generations < 1 or rows % num_generations:
        raise ValueError(f"{name}: {rows} rows do not form groups of {num_generations}.")


def read_columns(
    path: Path,
    names: list[str],
    group: int | None = None,
    worth: Callable[[pa.ChunkedArray], bool] | None = None,
) -> tuple[pa.Table, int, int] | None:
    """Some columns of a rollout file, or of one row group, whole and checked against each other.

    Args:
        worth: says of the completions whether the other columns are to be read at all.

    Returns:
        the table, the completions per prompt, and the first row of the row group; None where it
        was not worth it.

    Raises:
        ValueError: the file has no tokens, or its columns do not fit.
    """
    with _opened(path, texts=[name for name in names if name in TEXT]) as file:
        arrow = file.schema_arrow
        metadata = read_metadata(arrow.metadata, path.name)
        size = metadata.get("num_generations")
        if _lacking(arrow) or type(size) is not int or size < 1:
            raise ValueError(f"{path.name} holds no tokens to search.")
        table = bounded_table(file, ["completion"] if worth else names, path.name, group)
        if worth:
            completions = table.column("completion")
            if not worth(completions):
                return None
            others = [name for name in names if name != "completion"]
            table = bounded_table(file, others, path.name, group)
            table = table.append_column("completion", completions)
        arrays = {name: table.column(name).cast(EXPECTED.field(name).type) for name in names}
        table = pa.table(arrays).combine_chunks()
        first_row = sum(file.metadata.row_group(i).num_rows for i in range(group or 0))
    lengths = list_lengths(table.column("segment_ids"))
    for name in set(names) & {"token_ends", *TOKEN_FLOATS, *CREDIT_FLOATS}:
        absent = table.column(name).null_count == len(table)
        if not absent and not np.array_equal(list_lengths(table.column(name)), lengths):
            raise ValueError(f"{path.name}: {name} has not one number per token.")
    return table, size, first_row
