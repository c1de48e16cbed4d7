"""Columns of rollouts <-> a Parquet file, written whole or not at all.

`spo.rollouts` says what the columns hold; `datasets.load_dataset("parquet", ...)` reads them. No
pickle anywhere.
"""

import json
import os
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
METADATA_KEY = b"spo"
"""The file metadata entry that holds schema version, run id, threshold and config as JSON."""

TOKEN_FLOATS = (
    "token_entropies",
    "token_logprobs_old",
    "token_logprobs_ref",
    "token_values",
    "token_rewards",
)
CREDIT_FLOATS = ("token_advantages", "token_returns")
OPTIONAL = ("action_mask", "token_logprobs_sampler")
"""Columns that only files have whose rollouts need them."""


def schema(reward_names: list[str], optional: tuple[str, ...] = ()):
    """The Parquet columns, one row per completion; rewards_by_function is a struct of floats."""
    import pyarrow as pa

    floats = pa.list_(pa.float32())
    kinds = {"action_mask": pa.list_(pa.bool_()), "token_logprobs_sampler": floats}
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
        ]
    )


def write_table(
    path: Path, columns: dict[str, Any], schema: Any, metadata: dict[str, Any], group_size: int
) -> Path:
    """Write beside the path and rename; `group_size` rows, one prompt's, make a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {"schema_version": SCHEMA_VERSION} | metadata
    table = pa.Table.from_pydict(columns, schema=schema)
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    float_lists = [f"{name}.list.element" for name in TOKEN_FLOATS + CREDIT_FLOATS]
    try:
        pq.write_table(
            table,
            temporary,
            row_group_size=group_size,
            compression="zstd",
            use_dictionary=["prompt", "prompt_ids.list.element", "token_ids.list.element"],
            column_encoding=dict.fromkeys(float_lists, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_table(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrow columns by name, and the metadata."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, page_checksum_verification=True)
    metadata = read_metadata(table.schema.metadata, path)
    return {name: table.column(name) for name in table.column_names}, metadata


def read_metadata(schema_metadata: dict[bytes, bytes] | None, path: Any) -> dict[str, Any]:
    """The metadata `write_table` wrote, its version checked."""
    if not schema_metadata or METADATA_KEY not in schema_metadata:
        raise ValueError(f"{path} is not a rollout file of SPO: it carries no 'spo' metadata.")
    metadata = json.loads(schema_metadata[METADATA_KEY])
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {metadata.get('schema_version')}; this code reads "
            f"version {SCHEMA_VERSION}."
        )
    return metadata
