"""One command starts and goes on; other settings are honoured and told, or refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_runs as runs
from peft import LoraConfig
from saved_runs import Do, assert_goes_on_exactly, copy_of, files_of, stop, train_whole, trainer_of

import train_spo
from spo.errors import RunFolderError
from spo.rewards.calling import RewardError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three steps with a checkpoint after each, and its weights."""
    return train_whole(tmp_path_factory.mktemp("whole") / "run")


# --- one command -------------------------------------------------------------------------------
def test_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(whole, tmp_path):
    run = tmp_path / "run"
    trainer_of(run, resume_from_checkpoint="auto", callbacks=[Do(stop, "on_save", 2)]).train()
    assert [line["step"] for line in runs.metrics_of(run)] == [1, 2]
    assert_goes_on_exactly(run, whole, "auto")


def test_auto_starts_again_after_a_start_that_came_to_no_checkpoint(whole, tmp_path):
    run = tmp_path / "run"

    def fails(control):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(
            run, save_steps=0, callbacks=[Do(fails, "on_log")], resume_from_checkpoint="auto"
        ).train()
    first = (run / "metrics.jsonl").read_text()
    assert_goes_on_exactly(run, whole, "auto")
    assert (run / "metrics.jsonl.old-1").read_text() == first


def test_auto_does_not_train_over_a_finished_model(tmp_path):
    run = tmp_path / "run"
    trainer_of(run, save_steps=0, resume_from_checkpoint="auto").train()
    before = files_of(run)
    with pytest.raises(RunFolderError, match="holds a finished run and no checkpoint"):
        trainer_of(run, save_steps=0, resume_from_checkpoint="auto").train()
    assert files_of(run) == before


def test_latest_without_a_folder_is_the_newest_run_that_has_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs.script_inputs(tmp_path)

    def train(*flags):
        given = [f for f in runs.script_flags(tmp_path / "x") if not f.startswith("--output_dir")]
        train_spo.main([*given, *flags])

    train("--save_steps=1", "--run_name=first")
    os.utime(next(Path("runs").glob("first-*/checkpoint-000002")), (0, 0))
    train("--save_steps=1", "--run_name=second")
    train("--save_minutes=0", "--run_name=third")
    for resume in ("latest", "auto"):
        train(f"--resume_from_checkpoint={resume}", "--max_steps=3", "--save_steps=1")
    second = next(Path("runs").glob("second-*"))
    assert [line["step"] for line in runs.metrics_of(second)] == [1, 2, 3]
    assert len(list(Path("runs").iterdir())) == 3


# --- other settings ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 43}, "seed 42 -> 43"),
        ({"shuffle_dataset": False}, "shuffle_dataset True -> False"),
        ({"optim": "adafactor"}, "optim adamw_torch -> adafactor"),
        ({"num_generations": 2}, "prompts of a step 2 -> 4"),
        ({"per_device_train_batch_size": 16}, "prompts of a step 2 -> 4"),
        ({"generation_batch_size": 16}, "updates of a step 1 -> 2"),
        ({"num_iterations": 2}, "updates of a step 1 -> 2"),
        ({"train_dataset": runs.prompts(9)}, "other data"),
        ({"value_model": None}, "other models or adapters"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_cannot_be_honoured_is_refused(changed, message, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    before = files_of(run)
    with pytest.raises(ValueError, match=message) as refused:
        trainer_of(run, resume_from_checkpoint="latest", max_steps=4, **changed).train()
    assert "\n" not in str(refused.value)
    assert files_of(run) == before


def test_frozen_weights_and_adapters_of_the_same_shape_are_told_apart(tmp_path):
    def adapter(**lora):
        return {"peft_config": LoraConfig(**runs.LORA | lora)}

    trainer_of(tmp_path / "run", max_steps=1, **adapter()).train()
    resume = {"resume_from_checkpoint": "latest", "max_steps": 2}
    with pytest.raises(RunFolderError, match="other frozen weights"):
        trainer_of(tmp_path / "run", model=runs.policy(seed=5), **adapter(), **resume).train()
    with pytest.raises(RunFolderError, match="other adapters"):
        trainer_of(tmp_path / "run", **adapter(lora_alpha=4), **resume).train()
    trainer_of(tmp_path / "run", beta=0.1, max_steps=1, overwrite_output_dir=True).train()
    with pytest.raises(RunFolderError, match="other frozen weights"):  # the reference's
        trainer_of(tmp_path / "run", model=runs.policy(seed=5), beta=0.1, **resume).train()


def test_what_can_be_honoured_is_and_is_said(whole, tmp_path, capsys):
    """The new rate is that of a run which had it from the start, and so are decay and betas."""
    run = copy_of(whole, tmp_path)
    shutil.rmtree(run / "checkpoint-000003")
    changed = {
        "learning_rate": 5e-4,
        "value_learning_rate": 2e-4,
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "lr_scheduler_type": "cosine",
        "entropy_percentile": 0.3,
        "max_steps": 5,
    }
    resumed = trainer_of(run, resume_from_checkpoint="latest", **changed)
    resumed.train()
    said = capsys.readouterr().out
    for name in changed:
        assert f"{name} " in said.split("From step 2 on: ")[1].splitlines()[0]
    fresh = trainer_of(tmp_path / "fresh", **changed)
    fresh.train()
    rates = [
        [line["learning_rate"] for line in runs.metrics_of(p)[2:]]
        for p in (run, tmp_path / "fresh")
    ]
    assert rates[0] == rates[1]
    rates = [
        [line["spo/value_learning_rate"] for line in runs.metrics_of(p)[2:]]
        for p in (run, tmp_path / "fresh")
    ]
    assert rates[0] == rates[1]
    for trainer in (resumed, fresh):
        (group,) = trainer.optimizer.param_groups
        assert (group["weight_decay"], group["betas"]) == (0.1, (0.8, 0.999))
    assert json.loads((run / "spo_config.json").read_text())["learning_rate"] == 5e-4


def test_the_split_into_micro_batches_may_change(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    shutil.rmtree(run / "checkpoint-000003")
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = trainer_of(run, resume_from_checkpoint="latest", **split)
    trainer.train()
    assert runs.largest_difference(whole[1], runs.weights_of(trainer)) < 1e-4


def test_train_again_is_one_sentence(tmp_path):
    trainer = runs.make_trainer(tmp_path / "run")
    trainer.train()
    weights, metrics = runs.weights_of(trainer), runs.metrics_of(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"train\(\) has done 2 steps already") as refused:
        trainer.train()
    assert "\n" not in str(refused.value)
    assert runs.same_bits(weights, runs.weights_of(trainer))
    assert metrics == runs.metrics_of(tmp_path / "run")


def test_the_same_trainer_goes_on_after_an_interrupt(whole, tmp_path):
    def interrupt(control):
        raise KeyboardInterrupt

    trainer = trainer_of(tmp_path / "run", callbacks=[Do(interrupt, step=3)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.run.callbacks.callbacks.clear()
    trainer.train(resume_from_checkpoint=True)
    assert runs.same_bits(whole[1], runs.weights_of(trainer))
    assert runs.metrics_of(tmp_path / "run") == runs.metrics_of(whole[0])


def test_a_reward_that_fails_costs_no_finished_step(whole, tmp_path, capsys):
    """Though no checkpoint was due: a judge's server may be down for a minute."""
    calls = []

    def judge(completion_ids, **columns):
        calls.append(None)
        if len(calls) == 3:
            raise OSError("no route to the judge")
        return runs.low_bytes(completion_ids)

    judge.__name__ = "low_bytes"
    trainer = trainer_of(tmp_path / "run", save_steps=0, reward_funcs=judge)
    with pytest.raises(RewardError, match="no route to the judge"):
        trainer.train()
    assert (
        f"Step 2 is saved in {tmp_path / 'run' / 'checkpoint-000002'}." in capsys.readouterr().out
    )
    assert_goes_on_exactly(tmp_path / "run", whole)
