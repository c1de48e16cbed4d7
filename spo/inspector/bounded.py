"""Parquet columns, read only after their size was found acceptable.

The footer says how much a column takes. Text is decoded as a dictionary, so that a string repeated
a million times costs nothing until its size is known.
"""

import json
import math
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spo.columns import COLUMNS, is_text

MAX_ROWS = 16_384
MAX_VALUES = 1 << 22
"""Numbers per column, and cells of the padded (B, T) arrays."""
MAX_TEXT_BYTES = 64 << 20
MAX_BYTES = 1 << 28
"""Decompressed bytes per file, as its footer says."""
MAX_NUMBER = 1e300
"""Numbers beyond it are no measurement, and 400-digit integers are no float."""

TEXT = ("prompt", "completion")
MESSAGE = ("role", "content")

UNREADABLE = (
    pa.ArrowException,
    OSError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    RecursionError,  # deeply nested metadata
    OverflowError,
)


class TooLarge(ValueError):
    """The whole step exceeds the limits; one prompt of it may not."""


def is_number(x: object) -> bool:
    """Whether x is a finite number; true and 400-digit integers are none.

    >>> [is_number(x) for x in (1, 0.5, True, float("nan"), 10**400)]
    [True, True, False, False, False]
    """
    if isinstance(x, bool) or not isinstance(x, int | float):
        return False
    return -MAX_NUMBER <= x <= MAX_NUMBER and not math.isnan(x)


def is_regular(path: Path) -> bool:
    """Whether a path is a file that can be read without waiting: no pipe, socket or folder."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError):  # gone, or a link to itself
        return False


def open_parquet(path: Path, texts: list[str] | None = None) -> pq.ParquetFile:
    """The file with its text as dictionaries.

    Args:
        texts: the columns of text that will be read; None: any, which takes a look at the footer.

    Raises:
        ValueError: the path is no regular file.
    """
    if not is_regular(path):
        raise ValueError(f"{path.name} is no regular file.")
    checked = {"page_checksum_verification": True, "pre_buffer": False}
    if texts is not None:
        return pq.ParquetFile(path, read_dictionary=texts, **checked)
    meta = pq.read_metadata(path)
    leaves = [meta.schema.column(i) for i in range(meta.num_columns)]
    found = [
        leaf.path
        for leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY" and is_text_leaf(leaf.path)
    ]
    return pq.ParquetFile(path, metadata=meta, read_dictionary=found, **checked)


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column is text, or lists or structs that may hold some."""
    if pa.types.is_struct(kind):
        return any(is_text(part.type) for part in kind)
    return is_text(kind) or (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def is_text_leaf(path: str) -> bool:
    """The text itself, that of a data set column, or the role or content of a message."""
    is_column = path.startswith(f"{COLUMNS}.") and ".list." not in path
    return "." not in path or is_column or path.rsplit(".", 1)[1] in MESSAGE


def bounded_table(
    file: pq.ParquetFile, names: list[str], label: str, group: int | None = None
) -> pa.Table:
    """The named columns of the file, or of one row group.

    Raises:
        TooLarge: the footer promises more than the limits.
        ValueError: so does the text, once decoded as a dictionary.
    """
    meta = file.metadata
    groups = range(meta.num_row_groups) if group is None else [group]
    rows = sum(meta.row_group(i).num_rows for i in groups)
    if rows > MAX_ROWS:
        raise TooLarge(f"{label} has {rows} rows; the inspector reads {MAX_ROWS} at once.")
    check_footer(meta, groups, names, label)
    table = read_groups(file, names, groups)
    for column in names:
        if not holds_text(table.schema.field(column).type):
            continue
        size = text_bytes(table.column(column))
        if size > MAX_TEXT_BYTES:
            raise ValueError(
                f"{label} has {size >> 20} MiB of text in {column}; the inspector reads "
                f"{MAX_TEXT_BYTES >> 20} MiB."
            )
    return table


def read_groups(file: pq.ParquetFile, names: list[str], groups) -> pa.Table:
    """The named columns of some row groups.

    Text inside structs comes as dictionaries one row group at a time: pyarrow 26 cannot join them.
    """
    read = {"use_threads": False}  # quicker for files of this size
    arrow = file.schema_arrow  # made anew at every look
    kinds = {name: arrow.field(name).type for name in names}
    nested = [name for name, kind in kinds.items() if not is_text(kind) and holds_text(kind)]
    plain = [name for name in names if name not in nested]
    table = file.read_row_groups(list(groups), plain, **read)
    parts = [file.read_row_group(group, nested, **read) for group in groups if nested]
    for name in nested:
        chunks = [chunk for part in parts for chunk in part.column(name).chunks]
        table = table.append_column(name, pa.chunked_array(chunks, type=kinds[name]))
    return table


def check_footer(meta: pq.FileMetaData, groups, names: list[str], label: str) -> None:
    """Raises TooLarge where the named columns of these row groups exceed the limits."""
    values: dict[str, int] = {}
    total_bytes = 0
    leaves = {index: meta.schema.column(index).path for index in range(meta.num_columns)}
    leaves = {index: path for index, path in leaves.items() if path.split(".")[0] in names}
    for group in groups:
        row_group = meta.row_group(group)
        for index, path in leaves.items():
            chunk = row_group.column(index)
            total_bytes += chunk.total_uncompressed_size
            values[path] = values.get(path, 0) + chunk.num_values
    most = max(values.values(), default=0)
    if total_bytes > MAX_BYTES or most > MAX_VALUES:
        raise TooLarge(
            f"{label} takes {total_bytes >> 20} MiB, {most} numbers in one column; the inspector "
            f"reads {MAX_BYTES >> 20} MiB and {MAX_VALUES} numbers at once."
        )


def text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of dictionary-encoded text, also inside lists and structs, were it expanded."""
    return sum(array_bytes(chunk) for chunk in column.chunks)


def array_bytes(array: pa.Array) -> int:
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not len(array.dictionary):
            return 0
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(array_bytes(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return array_bytes(array.flatten())
    return array.nbytes


def list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Items per row, 0 for a null."""
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return lengths.to_numpy().astype(np.int64)
