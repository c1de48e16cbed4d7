"""One training, however it is cut: into micro-batches, over processes, or into two runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import run_elsewhere
import tiny_runs as runs
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from spo.values.network import NetworkValue


# --- micro-batches ---------------------------------------------------------------------------
def train_split(output_dir, **split):
    """Two steps of two updates, twice each, of 8 completions.

    adam_epsilon: Adam divides by the gradient's size, which would blow up the rounding error of
    gradients that are all but zero.
    """
    trainer = runs.make_trainer(
        output_dir,
        value_model=runs.critic(),
        generation_batch_size=16,
        num_iterations=2,
        adam_epsilon=1e-3,
        beta=0.1,
        **split,
    )
    trainer.train()
    return runs.weights_of(trainer), runs.metrics_of(output_dir)


@pytest.fixture(scope="module")
def undivided(tmp_path_factory):
    return train_split(tmp_path_factory.mktemp("undivided") / "run")


@pytest.mark.parametrize(
    "split",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"max_tokens_per_micro_batch": 40},
        {"max_tokens_per_micro_batch": 1},
        {"logits_chunk_size": 3},
        {"per_device_generation_batch_size": 3},
        {"gradient_checkpointing": True},
    ],
    ids=lambda split: "-".join(f"{name}={value}" for name, value in split.items()),
)
def test_micro_batches_change_neither_losses_nor_weights(split, undivided, tmp_path):
    weights, metrics = train_split(tmp_path / "run", **split)
    assert runs.largest_difference(undivided[0], weights) < 1e-6
    for line, expected in zip(metrics, undivided[1], strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    start = runs.weights_of(runs.make_trainer(tmp_path / "other", value_model=runs.critic()))
    assert runs.largest_difference(start, weights) > 1e-3, "nothing was learned"


# --- processes -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of some cases, run by this process."""
    folder = tmp_path_factory.mktemp("one")
    runs.script_inputs(folder)
    run_elsewhere.run_cases(folder, 0, 1)
    return folder


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch` tells processes under recipes/accelerate/fsdp2.yaml."""


@pytest.fixture(scope="module", params=["copies", "sharded"])
def two(tmp_path_factory, request):
    """The same by two processes, each with all weights or with half of them."""
    folder = tmp_path_factory.mktemp("two")
    runs.script_inputs(folder)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(runs.free_port())}
    common |= SHARDED if request.param == "sharded" else {}
    processes = [
        start("cases", folder, folder / f"log-{r}", common | {"RANK": r, "LOCAL_RANK": r})
        for r in "01"
    ]
    for r, process in zip("01", processes, strict=True):
        assert process.wait(timeout=500) == 0, (folder / f"log-{r}").read_text()[-3000:]
    return folder


def start(command: str, folder: Path, log: Path, variables: dict[str, str]) -> subprocess.Popen:
    """run_elsewhere.py in a process of its own; a file, as a full pipe would stop it."""
    return subprocess.Popen(
        [sys.executable, run_elsewhere.__file__, command, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.REPO)} | variables,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )


CASES = ["full", "shared_critic", "all_sources", "adapters", "nothing_to_learn_from", "tools"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_weights_of_one(case, one, two):
    """Relative to each tensor's largest weight, after 2 or 3 steps in float32: 3e-5."""
    expected = dict(np.load(one / f"{case}-0.npz"))
    first, second = (dict(np.load(two / f"{case}-{rank}.npz")) for rank in (0, 1))
    assert runs.same_bits(first, second)
    assert runs.largest_difference(expected, first) < 3e-5


@pytest.mark.parametrize("case", [*CASES, "script"])
def test_two_processes_sample_and_report_as_one(case, one, two):
    assert_same_numbers(one / case, two / case)


def test_two_processes_save_what_one_does(one, two):
    """The policy, the critic beside it, and a checkpoint that either could go on from."""
    for name in ("model.safetensors", "critic/model.safetensors"):
        assert_same_tensors(load_file(one / "full" / name), load_file(two / "full" / name))
    architecture = json.loads((two / "full" / "config.json").read_text())["architectures"]
    assert architecture == ["LlamaForCausalLM"]
    checkpoints = [folder / "full" / "checkpoint-000002" for folder in (one, two)]
    assert_same_tensors(*(load_file(path / "weights.safetensors") for path in checkpoints))
    for name in ("optimizer.bin", "optimizer_1.bin"):
        ours, theirs = (torch.load(path / name)["state"] for path in checkpoints)
        assert ours.keys() == theirs.keys()
        for slots, others in zip(ours.values(), theirs.values(), strict=True):
            assert_same_tensors(slots, others)


def assert_same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=3e-5)


def assert_same_numbers(one: Path, two: Path) -> None:
    """Two runs that may differ in rounding: samples, credit and metrics."""
    saved = list(zip(runs.rollouts_of(one), runs.rollouts_of(two), strict=True))
    assert saved
    for a, b in saved:
        assert a.rollouts.prompts == b.rollouts.prompts
        np.testing.assert_array_equal(a.rollouts.token_ids, b.rollouts.token_ids)
        np.testing.assert_array_equal(a.credit.segment_ids, b.credit.segment_ids)
        for name in ("token_advantages", "token_returns"):
            ours, theirs = getattr(a.credit, name), getattr(b.credit, name)
            assert (ours is None) == (theirs is None)  # an evaluation has no returns
            if ours is not None:
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        if a.rollouts.token_values is not None:
            np.testing.assert_allclose(
                a.rollouts.token_values, b.rollouts.token_values, rtol=1e-4, atol=1e-5
            )
    for line, expected in zip(runs.metrics_of(two), runs.metrics_of(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)


# --- one pass of the critic or two ---------------------------------------------------------------
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"peft_config": LoraConfig(**runs.LORA), "value_features": "surprisal"},
        {"mask_truncated_completions": True, "cliprange_value": 0.1, "value_warmup_steps": 1},
    ],
    ids=["full", "shared base", "masked rows"],
)
def test_values_from_the_training_pass_are_those_of_a_pass_of_their_own(
    given, tmp_path, monkeypatch
):
    """With Monte Carlo targets the critic runs once a step; rollouts and weights stay the same."""

    def train(name):
        trainer = runs.make_trainer(tmp_path / name, value_model="policy", max_steps=3, **given)
        assert trainer.critic.sources[-1].fits_while_reading == (name == "one")
        trainer.train()
        return runs.weights_of(trainer)

    one_pass = train("one")
    monkeypatch.setattr(NetworkValue, "fits_while_reading", False)
    two_passes = train("two")
    assert runs.largest_difference(one_pass, two_passes) < 1e-4
    assert_same_numbers(tmp_path / "one", tmp_path / "two")


def test_values_that_enter_their_own_targets_need_a_pass_of_their_own(tmp_path):
    for number, settings in enumerate(
        (
            {"lam_critic": 0.9},
            {"gamma": 0.99},
            {"num_iterations": 2},
            {"generation_batch_size": 16},
            {"peft_config": LoraConfig(lora_dropout=0.1, **runs.LORA)},
        )
    ):
        trainer = runs.make_trainer(tmp_path / str(number), value_model="policy", **settings)
        assert not trainer.critic.sources[-1].fits_while_reading


# --- resuming --------------------------------------------------------------------------------
def with_dropout(output_dir, **given):
    """Everything a resumed run has to restore: dropout, schedule, moments, two adapters."""
    return runs.make_trainer(
        output_dir,
        peft_config=LoraConfig(lora_dropout=0.1, **runs.LORA),
        value_model="policy",
        value_features="surprisal",
        value_learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        eval_dataset=runs.prompts(3),
        eval_steps=1,
        generation_batch_size=16,
        max_steps=4,
        save_steps=2,
        beta=0.1,
        **given,
    )


def assert_same_run(a, b):
    """Bit for bit, times excepted."""
    assert runs.metrics_of(a) == runs.metrics_of(b)
    paths = sorted(path.name for path in (a / "rollouts").glob("*.parquet"))
    assert paths == sorted(path.name for path in (b / "rollouts").glob("*.parquet"))
    for name in paths:
        assert pq.read_table(a / "rollouts" / name).equals(pq.read_table(b / "rollouts" / name))


def test_a_stopped_run_continues_exactly(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    trainer = with_dropout(whole)
    trainer.train()

    with_dropout(stopped, callbacks=[runs.StopAfter(3)]).train()
    # a step after the checkpoint, and a checkpoint that was never finished
    assert (stopped / "rollouts" / "step-000003.parquet").exists()
    shutil.copytree(stopped / "checkpoint-000002", stopped / "checkpoint-000003")
    (stopped / "checkpoint-000003" / "trainer_state.json").unlink()

    resumed = with_dropout(stopped, resume_from_checkpoint="latest")
    resumed.train()
    assert runs.same_bits(runs.weights_of(trainer), runs.weights_of(resumed))
    assert_same_run(whole, stopped)


def test_train_resumes_where_the_constructor_was_not_told(tmp_path):
    """`trainer.train(resume_from_checkpoint=True)`, as Transformers' Trainer has it."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    runs.make_trainer(whole, save_steps=1).train()
    runs.make_trainer(stopped, save_steps=1, callbacks=[runs.StopAfter(1)]).train()
    runs.make_trainer(stopped, save_steps=1).train(resume_from_checkpoint=True)
    assert_same_run(whole, stopped)


def test_a_run_killed_while_it_writes_a_checkpoint_continues_exactly(tmp_path):
    whole, dead = tmp_path / "whole", tmp_path / "dead"
    log = tmp_path / "log"
    process = start("killed", dead, log, {})
    trainer = run_elsewhere.killable_trainer(whole)
    trainer.train()
    assert process.wait(timeout=200) == -signal.SIGKILL, log.read_text()[-3000:]
    complete = ["checkpoint-000001", "checkpoint-000002"]
    assert sorted(path.name for path in dead.glob("checkpoint-*")) == complete

    with (dead / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')  # a line that was being written
    resumed = run_elsewhere.killable_trainer(dead, resume_from_checkpoint="latest")
    resumed.train()
    assert runs.same_bits(runs.weights_of(trainer), runs.weights_of(resumed))
    assert_same_run(whole, dead)
    assert not list(dead.glob(".checkpoint-*"))


def test_only_the_last_checkpoints_are_kept(tmp_path):
    runs.make_trainer(tmp_path / "run", max_steps=4, save_steps=1, save_total_limit=2).train()
    kept = sorted(path.name for path in (tmp_path / "run").glob("*checkpoint*"))
    assert kept == ["checkpoint-000003", "checkpoint-000004"]


def test_a_run_is_not_cut_back_by_resuming_it_with_fewer_steps(tmp_path):
    runs.make_trainer(tmp_path / "run", save_steps=1).train()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    fewer = runs.make_trainer(tmp_path / "run", max_steps=1, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="has done 2 steps, more than max_steps=1"):
        fewer.train()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_a_checkpoint_of_other_models_is_refused(tmp_path):
    runs.make_trainer(tmp_path / "run", max_steps=1, save_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-000001"
    other = runs.make_trainer(tmp_path / "other", value_model=runs.critic())
    with pytest.raises(ValueError, match="other models or adapters"):
        other.train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(ValueError, match="no complete checkpoint"):
        other.train(resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        other.train(resume_from_checkpoint=str(Path(tmp_path) / "nowhere"))
