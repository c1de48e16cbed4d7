"""Columns of rollouts <-> a Parquet file, written whole or not at all.

`spo.columns` says what they hold; `datasets.load_dataset("parquet", ...)` reads them. No pickle
anywhere.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""2 added columns that only some files have: OPTIONAL and STRUCTS of `spo.columns`."""
METADATA_KEY = b"spo"
"""The file metadata entry that holds schema version, run id, threshold and config as JSON."""


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
    kinds = dict(leaves(schema))
    floats = [path for path, kind in kinds.items() if kind == pa.float32() and ".list." in path]
    repeating = [path for path, kind in kinds.items() if kind == pa.string()]
    repeating.remove("completion")
    repeating += ["prompt_ids.list.element", "token_ids.list.element"]
    try:
        pq.write_table(
            table,
            temporary,
            row_group_size=group_size,
            compression="zstd",
            use_dictionary=repeating,
            column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
            write_statistics=False,  # of a text they hold the text: twice per prompt and column
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def leaves(fields: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    """(Parquet's path, type) of everything in a schema that holds numbers or text."""
    import pyarrow as pa

    for field in fields:
        path = within + field.name
        if pa.types.is_struct(field.type):
            yield from leaves(field.type, f"{path}.")
        elif pa.types.is_list(field.type):
            yield f"{path}.list.element", field.type.value_type
        else:
            yield path, field.type


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
    if metadata.get("schema_version") not in READABLE_VERSIONS:
        first, last = READABLE_VERSIONS[0], READABLE_VERSIONS[-1]
        raise ValueError(
            f"{path} has schema version {metadata.get('schema_version')}; this code reads "
            f"versions {first} to {last}."
        )
    return metadata
