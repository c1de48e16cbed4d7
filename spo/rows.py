"""Data sets and streams alike: which columns there are, rows as plain Python objects, the first
ones; and whose rows are whose."""

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from jaxtyping import Int

from spo.options import nearest_hint

ROW = "_row"
"""The column of a stream that numbers its rows."""

LOOKED_AT = 64
"""Rows at the beginning of a stream that stand for it where a whole data set would be checked."""


def is_stream(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset)


def beginning(dataset: Dataset | IterableDataset) -> Dataset:
    """A data set as it is, the first rows of a stream."""
    return Dataset.from_list(list(dataset.take(LOOKED_AT))) if is_stream(dataset) else dataset


def require_dataset(dataset: Any) -> None:
    """ValueError where prompts come in something else than a data set."""
    if isinstance(dataset, Dataset | IterableDataset):
        return
    raise ValueError(
        f"Prompts must come as a datasets.Dataset or IterableDataset, not "
        f"{type(dataset).__name__}: build one with Dataset.from_list."
    )


def split_of(dataset: Any, split: str) -> Dataset | IterableDataset:
    """One split of a DatasetDict; anything else as it is."""
    if not isinstance(dataset, DatasetDict | IterableDatasetDict):
        return dataset
    if split not in dataset:
        raise ValueError(
            f"The data set has no split {split!r}{nearest_hint(split, dataset)}; it has "
            f"{', '.join(dataset)}: choose one with --dataset_train_split and "
            "--dataset_test_split, in Python dataset['name']."
        )
    return dataset[split]


def plain(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Rows as Python objects: without a format (torch, numpy, pandas, ...), and with what a
    transform of the rows makes of them, once and for all."""
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        columns = dataset.column_names
        dataset = dataset.map(dict, batched=True, remove_columns=columns, desc="Transforming rows")
    return dataset.with_format(None)


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """The names of its columns; a stream may have to be looked at."""
    return dataset.column_names or list(next(iter(dataset), {}))


def require_column(dataset: Dataset | IterableDataset, column: str) -> None:
    """ValueError where a data set has no such column."""
    columns = columns_of(dataset)
    if column not in columns:
        hint = nearest_hint(column, columns)
        raise ValueError(f"The dataset has no column {column!r}{hint}; it has {columns}.")


def own_rows(count: int, processes: Any) -> Int[np.ndarray, " _"]:
    """Of rows 0 … count − 1 those of this process: the r-th n-th; `processes` is what has a
    process_index r and num_processes n."""
    return np.array_split(np.arange(count), processes.num_processes)[processes.process_index]
