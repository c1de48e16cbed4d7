"""Rollout files mutated by seed: read as they were, or refused by ValueError; nothing else.

python tests/faults/files.py 2000 --seed 0
"""

import argparse
import collections
import json
import os
import random
import resource
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_runs as runs

from spo.rollouts import METADATA_KEY, SavedRollouts, load_rollouts

MEMORY = 8 * 2**30
"""A file that makes its reader ask for more than this is a fault, too."""


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_a_bit_of_the_footer(content: bytes, draw: random.Random) -> bytes:
    """Where the schema, the sizes and the places of pages stand."""
    size = int.from_bytes(content[-8:-4], "little")
    changed = bytearray(content)
    changed[draw.randrange(len(content) - 8 - size, len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def cut_out(content: bytes, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(content)) for _ in range(2))
    return content[:a] + content[b:]


def zeros(content: bytes, draw: random.Random) -> bytes:
    start, length = draw.randrange(len(content)), draw.randint(1, 4096)
    return content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]


def noise(content: bytes, draw: random.Random) -> bytes:
    start, length = draw.randrange(len(content)), draw.randint(1, 256)
    return content[:start] + draw.randbytes(length) + content[start + length :]


def twice(content: bytes, draw: random.Random) -> bytes:
    return content + content[draw.randrange(len(content)) :]


def other_metadata(content: bytes, draw: random.Random) -> bytes:
    """A well-formed file whose metadata are none of ours."""
    table = pq.read_table(pa.BufferReader(content))
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    name = draw.choice([*metadata])
    values = [None, "x", -1, 0, 10**400, [], {}, True, float("nan"), [1], {"a": 1}]
    if draw.random() < 0.3:
        metadata.pop(name)
    else:
        metadata[name] = draw.choice(values)
    text = json.dumps(metadata).encode()
    if draw.random() < 0.2:
        text = draw.choice((b"", b"{", b"[]", b"\xff", b"[" * 99999, b"null"))
    return _written(table.replace_schema_metadata({METADATA_KEY: text}))


def other_column(content: bytes, draw: random.Random) -> bytes:
    """A well-formed file with a column missing, null, of another type or of other lengths."""
    table = pq.read_table(pa.BufferReader(content))
    index = draw.randrange(table.num_columns)
    field, rows = table.schema.field(index), table.num_rows
    ways = [
        lambda: table.remove_column(index),
        lambda: table.set_column(index, field.name, pa.nulls(rows, field.type)),
        lambda: table.set_column(index, field.name, pa.array(["x"] * rows)),
        lambda: table.set_column(index, field.name, pa.array([10**18] * rows)),
        lambda: table.set_column(index, field.name, pa.array([[1.5]] * rows)),
        lambda: table.set_column(index, field.name, pa.array([{"a": 1}] * rows)),
        lambda: table.set_column(index, field.name, pa.array([None, *[[[0]]] * (rows - 1)])),
        lambda: table.append_column(field.name, table.column(index)),
        lambda: table.slice(0, draw.randrange(rows)),
        lambda: table.slice(0, 0),
    ]
    return _written(draw.choice(ways)().replace_schema_metadata(table.schema.metadata))


def _written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


WAYS = (
    *(flip_bits, flip_a_bit_of_the_footer, cut, cut_out, zeros, noise, twice),
    *(other_metadata, other_column),
)


def check_types(saved: SavedRollouts, way: str) -> None:
    """What was read has the types that its fields promise, whatever the file had."""
    rollouts, mask = saved.rollouts, saved.rollouts.completion_mask
    assert isinstance(saved.config, dict), way
    assert {type(rollouts.step), type(rollouts.num_generations)} == {int}, way
    assert all(type(text) is str for text in (*rollouts.prompts, *rollouts.completions)), way
    assert all(type(i) is int for ids in rollouts.prompt_ids for i in ids), way
    assert (rollouts.truncated.dtype, rollouts.prompt_index.dtype) == (bool, np.int64), way
    for name, array in (vars(rollouts) | vars(saved.credit)).items():
        if name.startswith("token_") and array is not None:
            assert (array.shape, array.dtype.kind in "fi") == (mask.shape, True), (way, name)


def campaign(files: int, seed: int, folder: Path) -> collections.Counter:
    """How many files of each kind were read and refused."""
    runs.make_trainer(folder / "run", value_model="policy", beta=0.1, max_steps=1).train()
    content = next((folder / "run" / "rollouts").glob("*.parquet")).read_bytes()
    draw = random.Random(seed)
    counted: collections.Counter = collections.Counter()
    for number in range(files):
        way = WAYS[number % len(WAYS)]
        path = folder / "mutated.parquet"
        path.write_bytes(way(content, draw))
        try:
            saved = load_rollouts(path)
        except ValueError as error:
            counted[f"{way.__name__}: {'refused' if str(error).strip() else 'WITHOUT A WORD'}"] += 1
        else:
            check_types(saved, way.__name__)
            counted[f"{way.__name__}: read"] += 1
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        counted = campaign(given.files, given.seed, Path(folder))
    for name, count in sorted(counted.items()):
        print(f"{count:5d}  {name}")
    assert not [name for name in counted if "WITHOUT" in name]
    print(f"{given.files} files read or refused in words")


if __name__ == "__main__":
    main()
