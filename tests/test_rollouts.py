"""spo.rollouts: Parquet round trips, what other readers see, files that are not ours."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.rollouts import (
    METADATA_KEY,
    Rollouts,
    from_columns,
    load_rollouts,
    save_rollouts,
    select_rows,
    stack_rows,
)

LENGTHS = [5, 1, 0, 7, 3, 4]
CONFIG = SPOConfig(
    num_generations=2, entropy_percentile=0.3, save_columns=["tests", "answer", "lacking"]
)


def assert_same(actual, expected):
    """Every field equal, arrays to the bit, NaN equal to NaN."""
    for field in dataclasses.fields(expected):
        a, b = getattr(actual, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), field.name
            assert a.tobytes() == b.tobytes(), field.name
        else:
            assert a == b, field.name


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [LENGTHS, [0, 3], [1, 1, 1, 1]])
@pytest.mark.parametrize("critic", [True, False])
@pytest.mark.parametrize("kl", [True, False])
def test_what_is_saved_is_loaded_to_the_bit(tmp_path, lengths, critic, kl):
    batch = reference.rollouts(
        lengths, 2, critic=critic, reference=kl, truncated=[1], unscorable=[0]
    )
    credit = assign_credit(batch, CONFIG)
    path = save_rollouts(batch, tmp_path / "deep" / "step.parquet", credit, CONFIG, run_id="run-7")
    saved = load_rollouts(path)
    assert_same(saved.rollouts, batch)
    assert_same(saved.credit, credit)
    assert saved.config == CONFIG.to_dict()
    assert saved.run_id == "run-7"
    assert (saved.rollouts.token_values is None) == (not critic)
    assert (saved.rollouts.token_logprobs_ref is None) == (not kl)
    assert (saved.credit.token_returns is None) == (not critic)


def test_infinities_nans_and_characters_survive(tmp_path):
    batch = reference.rollouts([3, 2], 2)
    odd = batch.token_logprobs_old.copy()
    odd[0, :3] = [-np.inf, np.nan, -0.0]
    odd[1, 0] = np.float32(1e-45)
    texts = ["日本 👍🏽\n", 'quote " \\ \x00 nul']
    batch = dataclasses.replace(batch, token_logprobs_old=odd, completions=texts)
    saved = load_rollouts(reference.save(batch, tmp_path / "x.parquet", config=CONFIG))
    assert_same(saved.rollouts, batch)


def test_folder_names_with_equal_signs_are_just_names(tmp_path):
    """Parquet readers take `step=5/` for a partition column unless told not to."""
    batch = reference.rollouts([2, 1], 2)
    path = reference.save(batch, tmp_path / "step=5" / "lr=1e-5" / "x.parquet", config=CONFIG)
    assert_same(load_rollouts(path).rollouts, batch)


def knowing(lengths=LENGTHS, sources=2):
    """A batch whose critic read references, with columns of the data set."""
    batch = reference.rollouts(lengths, 2)
    random = np.random.default_rng(4)
    parts = {
        name: np.where(batch.completion_mask, random.normal(size=batch.completion_mask.shape), 0)
        for name in ("alignment", "network", "peers")[:sources]
    }
    parts = {name: array.astype(np.float32) for name, array in parts.items()}

    def cycle(entries):
        return [entries[row % len(entries)] for row in range(len(lengths))]

    return dataclasses.replace(
        batch.with_values(parts),
        columns={
            "answer": cycle(["4", None, "", "[5]", "日本\n", "1/2"]),
            "tests": cycle([[1, {"in": "é"}], None, 2.5, "text", [], True]),
        },
        references=cycle(["2+2=4", None, "2+3=5", "x", None, "y" * 300]),
        reference_origins=cycle(["answer", None, "peer", "memory", None, "peer"]),
    )


@pytest.mark.parametrize("sources", [1, 2, 3])
def test_what_the_critic_read_and_said_is_loaded_as_it_was(tmp_path, sources):
    batch = knowing(sources=sources)
    path = save_rollouts(batch, tmp_path / "x.parquet", assign_credit(batch, CONFIG), CONFIG)
    loaded = load_rollouts(path).rollouts
    for name, array in batch.values_by_source.items():
        assert loaded.values_by_source[name].tobytes() == array.tobytes()
    assert list(loaded.values_by_source) == list(batch.values_by_source)
    others = [dataclasses.replace(rollouts, values_by_source={}) for rollouts in (loaded, batch)]
    assert_same(*others)


def test_only_the_columns_asked_for_are_saved(tmp_path):
    batch = knowing()
    credit = assign_credit(batch, CONFIG)
    for asked, names in ((None, ["answer"]), (["tests"], ["tests"]), ([], [])):
        config = dataclasses.replace(CONFIG, save_columns=asked)
        path = save_rollouts(batch, tmp_path / "x.parquet", credit, config)
        saved = load_rollouts(path).rollouts.columns
        assert saved == {name: batch.columns[name] for name in names}
    assert "columns" not in pq.read_schema(path).names


def test_files_of_the_first_version_still_load(tmp_path):
    batch = reference.rollouts(LENGTHS, 2)
    path = reference.save(batch, tmp_path / "x.parquet", config=CONFIG)
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    for name in ("value_sources", "json_columns"):
        del metadata[name]
    metadata["schema_version"] = 1
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}), path)
    assert_same(load_rollouts(path).rollouts, batch)


def test_the_bundled_files_load():
    folder = Path(__file__).parents[1] / "assets" / "sample_rollouts"
    versions = set()
    for path in sorted(folder.rglob("*.parquet")):
        assert len(load_rollouts(path).rollouts) > 0
        versions.add(json.loads(pq.read_schema(path).metadata[METADATA_KEY])["schema_version"])
    assert versions <= {1, 2}


# --- the file itself ------------------------------------------------------------------------------


def test_one_row_group_per_prompt_with_its_metadata(tmp_path):
    batch = reference.rollouts(LENGTHS, 2)
    credit = assign_credit(batch, CONFIG)
    path = save_rollouts(batch, tmp_path / "x.parquet", credit, CONFIG, run_id="r")
    file = pq.ParquetFile(path)
    assert file.metadata.num_row_groups == 3
    for i in range(3):
        group = file.read_row_group(i)
        assert group.column("prompt_index").to_pylist() == [i, i]
        assert group.column("completion_index").to_pylist() == [0, 1]
        chunk = file.metadata.row_group(i).column(0)
        assert chunk.compression == "ZSTD"
    metadata = json.loads(file.schema_arrow.metadata[METADATA_KEY])
    assert metadata["entropy_threshold"] == credit.entropy_threshold
    assert metadata["config"] == CONFIG.to_dict()
    assert (metadata["run_id"], metadata["num_generations"]) == ("r", 2)


def test_datasets_reads_it(tmp_path):
    from datasets import load_dataset

    batch = reference.rollouts(LENGTHS, 2, critic=False, reference=False, unscorable=[3])
    credit = assign_credit(batch, CONFIG)
    path = save_rollouts(batch, tmp_path / "x.parquet", credit, CONFIG)
    dataset = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert dataset["completion"][:] == batch.completions
    assert dataset[2]["token_ids"] == []
    assert dataset[3]["reward"] is None
    assert dataset[3]["rewards_by_function"] == {"accuracy": None, "format": None}
    assert dataset[0]["rewards_by_function"]["accuracy"] == batch.completion_rewards[0]
    assert dataset[0]["token_values"] is None
    for b, n in enumerate(LENGTHS):
        for name in ("segment_ids", "token_advantages"):
            assert dataset[b][name] == getattr(credit, name)[b, :n].tolist()
        assert dataset[b]["token_entropies"] == batch.token_entropies[b, :n].tolist()
        assert dataset[b]["step"] == 3


def test_datasets_reads_what_the_critic_read_and_said(tmp_path):
    from datasets import load_dataset

    batch = knowing()
    path = save_rollouts(batch, tmp_path / "x.parquet", assign_credit(batch, CONFIG), CONFIG)
    dataset = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    for b, n in enumerate(LENGTHS):
        said = {name: array[b, :n].tolist() for name, array in batch.values_by_source.items()}
        assert dataset[b]["token_values_by_source"] == said
    assert dataset["reference"][:] == batch.references
    assert dataset["reference_origin"][:] == batch.reference_origins
    assert [row["answer"] for row in dataset["columns"]] == batch.columns["answer"]
    assert dataset[0]["columns"]["tests"] == '[1, {"in": "é"}]'
    assert dataset[3]["columns"]["tests"] == '"text"'
    assert dataset[1]["columns"]["tests"] is None


def test_the_terms_of_the_values_take_no_more_than_their_bytes(tmp_path):
    """Three terms of four bytes a token, split by byte and compressed; texts of a group once."""
    lengths = [400] * 16
    batch = dataclasses.replace(knowing(lengths, sources=3), num_generations=8)
    bare = dataclasses.replace(
        batch, values_by_source={}, columns={}, references=None, reference_origins=None
    )
    config = dataclasses.replace(CONFIG, num_generations=8)
    credit = assign_credit(batch, config)
    sizes = [
        save_rollouts(rollouts, tmp_path / name, credit, config).stat().st_size
        for name, rollouts in (("with", batch), ("without", bare))
    ]
    assert 3 * 3 < (sizes[0] - sizes[1]) / sum(lengths) < 3 * 4


@pytest.mark.parametrize("existing", [True, False])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, existing):
    batch = reference.rollouts([2, 1], 2)
    path = tmp_path / "x.parquet"
    if existing:
        reference.save(batch, path, config=CONFIG)
        before = path.read_bytes()

    def fail(table, where, **options):
        Path(where).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        reference.save(batch, path, config=CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == (["x.parquet"] if existing else [])
    if existing:
        assert path.read_bytes() == before


def test_a_flipped_bit_is_noticed(tmp_path):
    path = reference.save(reference.rollouts([200, 100], 2), tmp_path / "x.parquet", config=CONFIG)
    column = pq.ParquetFile(path).metadata.row_group(0).column(8)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"CRC|checksum"):
        load_rollouts(path)


# --- files that are not ours ----------------------------------------------------------------------


def test_a_parquet_file_of_someone_else_is_named_in_one_sentence(tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"prompt": ["a"]}), path)
    with pytest.raises(ValueError, match="not a rollout file of SPO") as error:
        load_rollouts(path)
    assert str(path) in str(error.value)


def test_a_file_of_another_schema_version_is_refused(tmp_path):
    path = reference.save(reference.rollouts([2, 1], 2), tmp_path / "x.parquet", config=CONFIG)
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[METADATA_KEY]) | {"schema_version": 99}
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=r"schema version 99; this code reads\s+versions 1 to 2"):
        load_rollouts(path)


@pytest.mark.parametrize("content", [b"", b"not a parquet file at all", b"PAR1....PAR1"])
def test_a_file_that_is_no_parquet_is_named_in_one_sentence(tmp_path, content):
    path = tmp_path / "broken.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Parquet") as error:
        load_rollouts(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["texts", "numbers", "nulls"])
def test_a_column_of_another_kind_is_read_as_its_own_kind_or_refused(tmp_path, what):
    batch = reference.rollouts([2, 1, 3, 2], 2)
    path = reference.save(batch, tmp_path / "x.parquet", config=CONFIG)
    table, kinds = pq.read_table(path), {"texts": ["x"], "numbers": [1], "nulls": [None]}
    refused = set()
    for index, column in enumerate(table.schema):
        other = pa.array(kinds[what] * 4, column.type if what == "nulls" else None)
        pq.write_table(table.set_column(index, column.name, other), path)
        try:
            found = load_rollouts(path).rollouts
        except ValueError:
            refused.add(column.name)
            continue
        for field in ("step", "prompts", "completions", "prompt_ids", "truncated", "prompt_index"):
            assert_same_kind(getattr(found, field), getattr(batch, field))
    own_kind = {"texts": {"prompt", "completion"}, "numbers": {"step", "prompt_index", "truncated"}}
    needed = {"prompt_ids", "token_ids", "segment_ids"}.union(*own_kind.values())
    assert needed - own_kind.get(what, set()) <= refused


def assert_same_kind(found, expected):
    """The types of two fields, and of what lists hold."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
    elif isinstance(expected, list):
        assert_same_kind(found[0], expected[0])


def test_a_file_that_does_not_exist_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_rollouts(tmp_path / "nowhere.parquet")


# --- the dataclass --------------------------------------------------------------------------------


def test_loss_mask_leaves_out_unscorable_and_truncated_rows():
    batch = reference.rollouts(LENGTHS, 2, truncated=[3, 4], unscorable=[0])
    kept = batch.loss_mask(False).sum(1).tolist()
    assert kept == [0, 1, 0, 7, 3, 4]
    assert batch.loss_mask(True).sum(1).tolist() == [0, 1, 0, 0, 0, 4]
    assert not (batch.loss_mask(True) & ~batch.completion_mask).any()
    assert batch.lengths.tolist() == LENGTHS
    assert len(batch) == 6


def records(batch):
    """What processes would gather to make `batch`, one dict per completion."""
    per_token = ("token_ids", "token_ends", "token_entropies", "token_logprobs_old")
    optional = ("token_logprobs_ref", "token_values", "token_rewards")
    for b, n in enumerate(batch.lengths):
        yield {
            **{name: getattr(batch, name)[b, :n].tolist() for name in per_token},
            **{
                name: None if getattr(batch, name) is None else getattr(batch, name)[b, :n]
                for name in optional
            },
            "prompt": batch.prompts[b],
            "completion": batch.completions[b],
            "prompt_ids": batch.prompt_ids[b],
            "reward": batch.completion_rewards[b],
            "rewards_by_function": batch.rewards_by_function[b],
            "truncated": bool(batch.truncated[b]),
            "prompt_index": int(batch.prompt_index[b]),
        }


@pytest.mark.parametrize("critic", [True, False])
def test_stacked_records_are_the_batch(critic):
    batch = reference.rollouts(LENGTHS, 2, critic=critic, truncated=[1], unscorable=[0])
    stacked = stack_rows(
        list(records(batch)), step=3, num_generations=2, reward_names=batch.reward_names
    )
    assert_same(stacked, batch)


@pytest.mark.parametrize(
    "rows", [slice(2, 4), [4, 5, 0, 1], np.array([True, True, False, False, True, True])]
)
def test_selected_rows_are_those_rows(rows):
    batch = reference.rollouts(LENGTHS, 2, critic=False)
    chosen = select_rows(batch, rows)
    index = np.arange(6)[rows]
    for field in dataclasses.fields(Rollouts):
        whole, part = getattr(batch, field.name), getattr(chosen, field.name)
        if isinstance(whole, np.ndarray):
            np.testing.assert_array_equal(part, whole[index])
        elif field.name in ("prompts", "completions", "prompt_ids"):
            assert part == [whole[i] for i in index]
        else:
            assert part == whole


def test_columns_read_by_hand_make_the_same_rollouts(tmp_path):
    batch = reference.rollouts(LENGTHS, 2)
    path = reference.save(batch, tmp_path / "x.parquet", config=CONFIG)
    first_group = pq.ParquetFile(path).read_row_group(0)
    columns = {name: first_group.column(name) for name in first_group.column_names}
    metadata = json.loads(first_group.schema.metadata[METADATA_KEY])
    read = from_columns(columns, metadata).rollouts
    expected = select_rows(batch, slice(0, 2))
    for name in ("token_ids", "token_values", "completion_mask"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name)[:, :5])
    assert read.completions == expected.completions


# --- imports --------------------------------------------------------------------------------------


def test_the_pure_core_imports_neither_torch_nor_transformers():
    """One process, so that it is paid once; the module that breaks it is named."""
    program = """
import sys
for name in ("spo", "spo.config", "spo.segments", "spo.advantages", "spo.rollouts", "spo.metrics"):
    __import__(name)
    heavy = {"torch", "transformers", "accelerate", "datasets"} & set(sys.modules)
    assert not heavy, f"{name} imports {heavy}"
import numpy as np
from spo.rollouts import load_rollouts
"""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
