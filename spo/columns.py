"""Rollouts and credit, field by field <-> the columns of a rollout file.

`spo.rollouts` makes the objects; `spo.parquet` writes and reads the file. What only some rollouts
have (a critic of several sources, references, columns of the data set) only their files have.

Axes: B completions (rows of the file), T completion tokens, right-padded; F reward functions.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

TOKEN_FLOATS = (
    "token_entropies",
    "token_logprobs_old",
    "token_logprobs_ref",
    "token_values",
    "token_rewards",
)
CREDIT_FLOATS = ("token_advantages", "token_returns")
NEVER_NULL = (
    "step",
    "prompt_index",
    "prompt",
    "completion",
    "prompt_ids",
    "token_ids",
    "truncated",
)
OPTIONAL = ("action_mask", "token_logprobs_sampler", "reference", "reference_origin")
"""Columns that only files have whose rollouts need them."""
VALUES_BY_SOURCE = "token_values_by_source"
COLUMNS = "columns"
STRUCTS = (VALUES_BY_SOURCE, COLUMNS)
"""Further ones: the terms of token_values where there are several, and columns of the data set."""


def schema(
    reward_names: Sequence[str],
    optional: Sequence[str] = (),
    sources: Sequence[str] = (),
    columns: Sequence[str] = (),
):
    """The Parquet columns, one row per completion; rewards_by_function is a struct of floats.

    Args:
        optional: which of OPTIONAL the file has.
        sources, columns: fields of the structs STRUCTS; a struct without fields is left out.
    """
    import pyarrow as pa

    floats, text = pa.list_(pa.float32()), pa.string()
    kinds = {
        "action_mask": pa.list_(pa.bool_()),
        "token_logprobs_sampler": floats,
        "reference": text,
        "reference_origin": text,
    }
    by_source = pa.struct([(name, floats) for name in sources])
    of_data_set = pa.struct([(name, text) for name in columns])
    structs = [(VALUES_BY_SOURCE, by_source), (COLUMNS, of_data_set)]
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
            *((name, kinds[name]) for name in optional),
            *((name, kind) for name, kind in structs if kind.num_fields),
        ]
    )


# --- one column ----------------------------------------------------------------------------------


def ragged(array: Shaped[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"]) -> list[np.ndarray]:
    """The rows of a padded array, cut to their lengths.

    >>> [row.tolist() for row in ragged(np.array([[1, 2], [3, 0]]), np.array([2, 1]))]
    [[1, 2], [3]]
    """
    return [row[:length] for row, length in zip(array, lengths, strict=True)]


def padded(
    column: Any, mask: Bool[np.ndarray, "B T"], dtype: Any, fill: float = 0
) -> Shaped[np.ndarray, "B T"] | None:
    """A ragged Arrow column as an array, `fill` where the mask is False; None: all rows are null.

    Raises:
        ValueError: it has another number of entries than the mask.
    """
    if column.null_count == len(column):
        return None
    array = np.full(mask.shape, fill, dtype=dtype)
    array[mask] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return array


def as_rows(columns: dict[str, Sequence], count: int) -> list[dict[str, Any]]:
    """Columns by name -> a struct per row.

    >>> as_rows({"a": [1, 2], "b": [3, 4]}, 2)
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
    """
    return [{name: column[row] for name, column in columns.items()} for row in range(count)]


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of text, however it is stored."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def struct_fields(column: Any) -> dict[str, Any]:
    """An Arrow column of structs -> its fields as Arrow columns by name."""
    import pyarrow as pa

    names = [field.name for field in column.type]
    parts = (pa.chunked_array([part]) for part in column.combine_chunks().flatten())
    return dict(zip(names, parts, strict=True))


def as_texts(entries: Sequence) -> tuple[list[str | None], bool]:
    """Entries of a data set column as text, and whether the text is JSON: it is where not all of
    them are text already.

    >>> as_texts(["4", None]), as_texts(["4", [5]])
    ((['4', None], False), (['"4"', '[5]'], True))
    """
    if all(entry is None or isinstance(entry, str) for entry in entries):
        return list(entries), False
    texts = (json.dumps(entry, default=str, ensure_ascii=False) for entry in entries)
    return [None if text == "null" else text for text in texts], True


def from_texts(texts: Sequence[str | None], is_json: bool) -> list:
    """The same backwards; what JSON does not know (dates, numpy's numbers) stays text."""
    if not is_json:
        return list(texts)
    return [None if text is None else json.loads(text) for text in texts]


# --- all of them ---------------------------------------------------------------------------------

TEXTS = {"reference": "references", "reference_origin": "reference_origins"}
"""Columns of text that only some files have -> the fields of the rollouts."""


def to_columns(
    parts: dict[str, Any], lengths: Int[np.ndarray, " B"]
) -> tuple[dict[str, Sequence], Any, dict[str, list[str]]]:
    """The fields of rollouts and credit -> ragged columns, their schema, and what of the metadata
    says how to read them: `value_sources`, and `json_columns` of the data set."""
    texts = {name: as_texts(entries) for name, entries in parts["columns"].items()}
    sources = list(parts["values_by_source"])
    several = sources if len(sources) > 1 else []
    optional = _optional(parts, lengths)
    by_source = {name: ragged(parts["values_by_source"][name], lengths) for name in several}
    of_data_set = {name: column for name, (column, _) in texts.items()}
    structs = {VALUES_BY_SOURCE: by_source, COLUMNS: of_data_set}
    structs = {name: as_rows(fields, len(lengths)) for name, fields in structs.items() if fields}
    columns = _needed(parts, lengths) | optional | structs
    metadata = {
        "value_sources": sources,
        "json_columns": [name for name, (_, is_json) in texts.items() if is_json],
    }
    kinds = schema(parts["reward_names"], tuple(optional), several, tuple(of_data_set))
    return columns, kinds, metadata


def _needed(parts: dict[str, Any], lengths: Int[np.ndarray, " B"]) -> dict[str, Sequence]:
    """The columns of every file."""

    def cut(name):
        array = parts[name]
        return [None] * len(lengths) if array is None else ragged(array, lengths)

    rewards = [[_or_null(x) for x in column] for column in parts["rewards_by_function"].T]
    tokens = ("token_ids", "token_ends", *TOKEN_FLOATS, "segment_ids", *CREDIT_FLOATS)
    return {
        "step": [parts["step"]] * len(lengths),
        "prompt_index": parts["prompt_index"],
        "completion_index": np.arange(len(lengths)) % parts["num_generations"],
        "prompt": parts["prompts"],
        "completion": parts["completions"],
        "prompt_ids": parts["prompt_ids"],
        **{name: cut(name) for name in tokens},
        "reward": [_or_null(x) for x in parts["completion_rewards"]],
        "rewards_by_function": as_rows(
            dict(zip(parts["reward_names"], rewards, strict=True)), len(lengths)
        ),
        "truncated": parts["truncated"],
    }


def _optional(parts: dict[str, Any], lengths: Int[np.ndarray, " B"]) -> dict[str, Sequence]:
    """The columns of OPTIONAL that these rollouts need."""
    masks = ("action_mask", "token_logprobs_sampler")
    tokens = {name: ragged(parts[name], lengths) for name in masks if parts[name] is not None}
    texts = {name: parts[field] for name, field in TEXTS.items() if parts[field] is not None}
    return tokens | texts


def _or_null(x: float) -> float | None:
    return None if np.isnan(x) else x


def rollout_fields(columns: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Arrow columns (pyarrow ChunkedArrays by name) and the file's metadata -> the fields of
    `Rollouts`.

    Raises:
        ValueError: a column is null where no rollout is, or of another kind.
    """
    columns = columns | _of_their_types(columns)
    lengths = np.array([len(row) for row in columns["token_ids"]], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0))[None] < lengths[:, None]

    def tokens(name, dtype, fill):
        return padded(columns[name], mask, dtype, fill) if name in columns else None

    by_function = struct_fields(columns["rewards_by_function"])
    rewards = np.array([column.to_numpy() for column in by_function.values()], dtype=np.float32)
    floats = {name: tokens(name, np.float32, 0.0) for name in TOKEN_FLOATS}
    return {
        **floats,
        "step": columns["step"][0].as_py() if len(lengths) else 0,
        "num_generations": metadata["num_generations"],
        "prompts": columns["prompt"].to_pylist(),
        "completions": columns["completion"].to_pylist(),
        "prompt_ids": columns["prompt_ids"].to_pylist(),
        "token_ids": tokens("token_ids", np.int64, 0),
        "completion_mask": mask,
        "token_ends": tokens("token_ends", np.int64, -1),
        "completion_rewards": columns["reward"].to_numpy(),
        "rewards_by_function": np.ascontiguousarray(rewards.reshape(-1, len(lengths)).T),
        "reward_names": list(by_function),
        "truncated": columns["truncated"].to_numpy(),
        "prompt_index": columns["prompt_index"].to_numpy(),
        "action_mask": tokens("action_mask", bool, False),
        "token_logprobs_sampler": tokens("token_logprobs_sampler", np.float32, 0.0),
        "values_by_source": _values_by_source(columns, metadata, floats["token_values"], mask),
        "columns": _of_data_set(columns, metadata.get("json_columns", [])),
        **{field: columns[name].to_pylist() for name, field in TEXTS.items() if name in columns},
    }


def _of_their_types(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of every file, as `schema` has them."""
    import pyarrow as pa

    found = {}
    for field in schema(()):
        column = columns[field.name]
        if pa.types.is_struct(field.type):
            continue
        if is_text(field.type) and not is_text(column.type):
            raise ValueError(f"column {field.name} holds no text")
        if field.name in NEVER_NULL and column.null_count:
            raise ValueError(f"column {field.name} has entries that are null")
        found[field.name] = column.cast(field.type)
    return found


def _values_by_source(
    columns: dict[str, Any],
    metadata: dict[str, Any],
    token_values: Float[np.ndarray, "B T"] | None,
    mask: Bool[np.ndarray, "B T"],
) -> dict[str, Float[np.ndarray, "B T"]]:
    """The terms of V; a single one is V itself, and the file says its name alone."""
    if VALUES_BY_SOURCE in columns:
        parts = struct_fields(columns[VALUES_BY_SOURCE])
        found = {name: padded(column, mask, np.float32) for name, column in parts.items()}
        return {name: array for name, array in found.items() if array is not None}
    names = metadata.get("value_sources", [])
    return {} if token_values is None or len(names) != 1 else {names[0]: token_values}


def _of_data_set(columns: dict[str, Any], json_columns: Sequence[str]) -> dict[str, list]:
    if COLUMNS not in columns:
        return {}
    texts = {name: column.to_pylist() for name, column in struct_fields(columns[COLUMNS]).items()}
    return {name: from_texts(entries, name in json_columns) for name, entries in texts.items()}


def credit_fields(columns: dict[str, Any], mask: Bool[np.ndarray, "B T"]) -> dict[str, Any]:
    """Arrow columns -> the arrays of `Credit`."""
    floats = {name: padded(columns[name], mask, np.float32) for name in CREDIT_FLOATS}
    return {"segment_ids": padded(columns["segment_ids"], mask, np.int64, -1), **floats}
