"""Streams: the rows of a step, resuming, what is too long, two processes, from the command line."""

import re
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_runs as runs
from datasets import Dataset, IterableDataset, IterableDatasetDict

import train_spo
from spo.config import SPOConfig
from spo.data import as_chat, load_dataset_by_name, prepare_prompts
from spo.streams import plan_prompts, shuffled
from spo.trl import translate


def stream(count=10, shards=1):
    return runs.prompts(count).to_iterable_dataset(num_shards=shards)


def generated():
    """Nobody knows its columns, types or length before it is read."""
    number = 0
    while True:
        yield {"prompt": "sum: " + "1 + " * (number % 3) + str(number), "answer": number}
        number += 1


def plan(dataset, index=0, count=1, positions=None, **settings):
    prepared = prepare_prompts(dataset, tiny.byte_tokenizer()).dataset
    defaults = {"num_generations": 2, "per_device_train_batch_size": 8 // count, "max_steps": 9}
    processes = SimpleNamespace(process_index=index, num_processes=count)
    return plan_prompts(prepared, SPOConfig(**defaults | settings), processes, positions)


def rows_of(prompts, steps):
    return [prompts.batch(step).index.tolist()[::2] for step in steps]


def test_in_order_every_row_comes_once_a_pass():
    prompts = plan(stream(10), shuffle_dataset=False)
    assert rows_of(prompts, range(1, 6)) == [
        *([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]),
        *([2, 3, 4, 5], [6, 7, 8, 9]),
    ]
    assert prompts.batches.epoch(5) == 1.0
    batch = prompts.batch(3)
    assert batch.prompts == [runs.prompts(10)[i]["prompt"] for i in (8, 8, 9, 9, 0, 0, 1, 1)]


@pytest.mark.parametrize("shards", [1, 3])
def test_shuffled_every_row_comes_once_a_pass_in_another_order(shards):
    prompts = plan(stream(12, shards))
    passes = np.array(rows_of(prompts, range(1, 7))).reshape(2, 12)
    assert [sorted(rows) for rows in passes.tolist()] == [[*range(12)]] * 2
    assert passes[0].tolist() != passes[1].tolist() != [*range(12)]
    assert rows_of(plan(stream(12, shards)), range(1, 7)) == passes.reshape(6, 4).tolist()
    assert rows_of(plan(stream(12, shards), seed=1), [1]) != passes.reshape(6, 4)[:1].tolist()


@pytest.mark.parametrize("settings", [{}, {"shuffle_dataset": False}])
@pytest.mark.parametrize(
    "source", [lambda: stream(7), lambda: IterableDataset.from_generator(generated)]
)
def test_a_step_has_the_same_rows_wherever_one_begins(source, settings):
    whole = rows_of(plan(source(), **settings), range(1, 8))
    for start in (2, 4, 7):
        assert rows_of(plan(source(), **settings), range(start, 8)) == whole[start - 1 :]
    again = plan(source(), **settings)
    assert rows_of(again, [5, 2, 2, 3]) == [whole[4], whole[1], whole[1], whole[2]]


def test_processes_share_the_rows_of_a_step():
    one = plan(stream(9))
    two = [plan(stream(9), index, 2) for index in range(2)]
    for step in (1, 2, 3, 4):
        whole, parts = one.batch(step), [prompts.batch(step) for prompts in two]
        for name in ("rows", "index"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))
        assert [*chain(*(part.prompts for part in parts))] == whole.prompts


def test_the_buffer_holds_what_is_drawn_from():
    rows = [{"row": i} for i in range(50)]
    order = [row["row"] for row in shuffled(iter(rows), np.random.default_rng(0), size=5)]
    assert sorted(order) == [*range(50)]
    assert all(row <= place + 5 for place, row in enumerate(order))  # none from further on
    assert order[:5] != [*range(5)]


# --- too long, nothing there, no length ------------------------------------------------------
def test_prompts_beyond_the_models_positions_are_passed_over_with_a_word():
    lengths = [len(prompt) for prompt in runs.prompts(9)["prompt"]]
    longest = sorted(lengths)[4]
    settings = {"positions": longest + 32, "max_completion_length": 32, "shuffle_dataset": False}
    prompts = plan(stream(9), **settings)
    with pytest.warns(UserWarning, match="prompts that are too long") as told:
        rows = [*chain(*rows_of(prompts, range(1, 5)))]
    fits = [i for i, length in enumerate(lengths) if length <= longest]
    assert rows == (fits * 4)[:16]
    assert len(told) == 1


def test_a_stream_that_holds_nothing_usable_ends_in_a_sentence():
    prompts = plan(stream(9), positions=33, max_completion_length=32)
    with (
        pytest.warns(UserWarning, match="too long"),
        pytest.raises(ValueError, match="no prompt that fits"),
    ):
        prompts.batch(1)
    with pytest.raises(ValueError, match="leaves no room for a prompt"):
        plan(stream(9), positions=32, max_completion_length=32)
    empty = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match="The dataset is empty"):
        plan(empty)


@pytest.mark.parametrize(
    ("dataset", "max_steps", "message"),
    [
        (stream(), -1, "A stream has no length to take num_train_epochs of: set max_steps."),
        (stream().rename_column("prompt", "text"), 1, "The dataset has no column 'prompt'"),
        (IterableDatasetDict(main=stream()), 1, "no split 'train' (did you mean 'main'?)"),
    ],
)
def test_what_a_stream_cannot_do_is_told_at_once(dataset, max_steps, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        runs.make_trainer(tmp_path / "run", train_dataset=dataset, max_steps=max_steps)
    assert not (tmp_path / "run").exists()


# --- training --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source", [lambda: stream(7), lambda: IterableDataset.from_generator(generated)]
)
def test_a_stopped_run_on_a_stream_goes_on_bit_for_bit(source, tmp_path):
    settings = {"max_steps": 4, "save_steps": 2, "value_model": "policy"}
    whole = runs.make_trainer(tmp_path / "whole", train_dataset=source(), **settings)
    whole.train()
    half = runs.make_trainer(
        tmp_path / "half", train_dataset=source(), callbacks=[runs.StopAfter(2)], **settings
    )
    half.train()
    rest = runs.make_trainer(
        tmp_path / "half", train_dataset=source(), **settings, resume_from_checkpoint="latest"
    )
    rest.train()
    assert runs.same_bits(runs.weights_of(whole), runs.weights_of(rest))
    columns = [
        [saved.rollouts.prompts for saved in runs.rollouts_of(tmp_path / name)]
        for name in ("whole", "half")
    ]
    assert columns[0] == columns[1]


def test_another_stream_is_noticed_on_resuming(tmp_path):
    runs.make_trainer(tmp_path / "run", train_dataset=stream(), save_steps=1).train()
    other = IterableDataset.from_generator(generated)
    with pytest.raises(ValueError, match="other data"):
        runs.make_trainer(
            tmp_path / "run", train_dataset=other, max_steps=3, resume_from_checkpoint="latest"
        ).train()


def test_a_held_out_stream_is_read_to_its_end(tmp_path):
    trainer = runs.make_trainer(tmp_path / "run", eval_dataset=stream(5))
    assert len(trainer.eval_dataset) == 5
    assert "eval_reward" in trainer.evaluate()


def test_a_system_prompt_goes_before_a_streams_prompts():
    chats = as_chat(stream(3).with_format("torch"), "Add.")
    assert next(iter(chats))["prompt"] == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "sum: 0"},
    ]


def test_the_flag_streams_files_and_data_sets_on_disk(tmp_path):
    runs.script_inputs(tmp_path)
    runs.prompts().save_to_disk(tmp_path / "saved")
    for name in ("problems.jsonl", "saved"):
        loaded = load_dataset_by_name(str(tmp_path / name), streaming=True)
        assert isinstance(loaded, IterableDataset)
        assert [row["prompt"] for row in loaded] == runs.prompts()["prompt"][:]
    with pytest.raises(ValueError, match="leave streaming out"):
        load_dataset_by_name("reasoning_gym/chain_sum", streaming=True)
    train_spo.main([*runs.script_flags(tmp_path / "run"), "--dataset_streaming"])
    seen = [saved.rollouts.prompts[::4] for saved in runs.rollouts_of(tmp_path / "run")]
    assert len(seen) == 2
    assert {*chain(*seen)} <= {*runs.prompts()["prompt"]}


def test_streaming_is_another_name_of_the_flag():
    found = translate({"streaming": True}, ["dataset_streaming"])
    assert found.settings == {"dataset_streaming": True}
    assert not found.problems


def test_a_stream_and_its_data_set_train_alike(tmp_path):
    """In order, the same rows: the same weights."""
    settings = {"shuffle_dataset": False}
    weights = []
    for name, dataset in (("stream", stream(5)), ("whole", Dataset.from_list(list(stream(5))))):
        trainer = runs.make_trainer(tmp_path / name, train_dataset=dataset, **settings)
        trainer.train()
        weights.append(runs.weights_of(trainer))
    assert runs.same_bits(*weights)
