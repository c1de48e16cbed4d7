"""Checkpoints: whole or not there, told from others, and exact; nothing a person has is deleted."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import run_elsewhere
import tiny_runs as runs
import torch
from peft import LoraConfig
from tiny import byte_tokenizer
from transformers import TrainerCallback

import train_spo
from spo.errors import NonFiniteLossError, RunFolderError, SaveError
from spo.rewards.calling import RewardError
from spo.run import checkpoint
from spo.run.checkpoint import checkpoints_in, damage, last_good


class Do(TrainerCallback):
    """Call a function at an event of a step."""

    def __init__(self, act, event="on_step_end", step=1):
        def call(args, state, control, **kwargs):
            if state.global_step == step:
                act(control)

        setattr(self, event, call)


def stop(control):
    control.should_training_stop = True


def trainer_of(run, **given):
    return runs.make_trainer(
        run, **{"value_model": "policy", "save_steps": 1, "max_steps": 3} | given
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three steps with a checkpoint after each, and its weights."""
    run = tmp_path_factory.mktemp("whole") / "run"
    trainer = trainer_of(run)
    trainer.train()
    return run, runs.weights_of(trainer)


def copy_of(whole, tmp_path) -> Path:
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def assert_goes_on_exactly(run, whole, resume="latest"):
    trainer = trainer_of(run, resume_from_checkpoint=resume)
    trainer.train()
    assert runs.same_bits(whole[1], runs.weights_of(trainer))
    assert runs.metrics_of(run) == runs.metrics_of(whole[0])
    assert damage(run / "checkpoint-000003") is None


# --- damage ----------------------------------------------------------------------------------
def empty(path):
    path.write_bytes(b"")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def gone(path):
    path.unlink()


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


DAMAGES = (empty, half, zeroed, one_bit, longer, gone, garbage)
FILES = (
    "weights.safetensors",
    "optimizer.bin",
    "optimizer_1.bin",
    "scheduler.bin",
    "scheduler_1.bin",
    "random_states_0.pkl",
    "trainer_state.json",
)


def test_every_file_of_a_checkpoint_is_tried_below(whole):
    assert {path.name for path in (whole[0] / "checkpoint-000003").iterdir()} == {*FILES}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", DAMAGES)
def test_damage_is_found_and_the_one_before_is_taken(harm, file, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    harm(run / "checkpoint-000003" / file)
    path, said = checkpoint.choose(run, "latest", None)
    assert path == run / "checkpoint-000002"
    assert said.startswith(f"Not from checkpoint-000003 ({file} ")
    assert said.endswith(f"resuming from {path}.")


def test_a_run_goes_on_exactly_from_the_one_before(whole, tmp_path, capsys):
    run = copy_of(whole, tmp_path)
    one_bit(run / "checkpoint-000003" / "weights.safetensors")
    assert_goes_on_exactly(run, whole, "auto")
    assert "Not from checkpoint-000003 (weights.safetensors is damaged)" in capsys.readouterr().out


def test_a_damaged_one_that_is_named_is_refused_with_the_last_good_one(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    half(run / "checkpoint-000003" / "optimizer.bin")
    trainer = trainer_of(run, resume_from_checkpoint=str(run / "checkpoint-000003"))
    with pytest.raises(RunFolderError, match=r"optimizer\.bin is damaged; the last good .*000002"):
        trainer.train()


@pytest.mark.parametrize("resume", ["latest", "auto"])
def test_without_a_good_one_nothing_is_begun_anew_in_silence(resume, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    for path in checkpoints_in(run):
        empty(path / "weights.safetensors")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"No checkpoint in .* is whole.*000003.*000001"):
        trainer_of(run, resume_from_checkpoint=resume).train()
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "line", [b"garbage\n", b"[1]\n", b'{"step": "x"}\n', b"\xff\xfe\n", b"[" * 9999]
)
def test_garbage_in_the_metrics_does_not_block_resuming(line, whole, tmp_path, capsys):
    run = copy_of(whole, tmp_path)
    content = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([content[0], line + b"\n", *content[1:]]))
    shutil.rmtree(run / "checkpoint-000003")
    assert_goes_on_exactly(run, whole)
    assert "lines that are no metrics are dropped" in capsys.readouterr().out


# --- others' ---------------------------------------------------------------------------------
def foreign(run, name="checkpoint-500"):
    """What Transformers' Trainer leaves."""
    folder = run / name
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "epoch": 1.0}))
    (folder / "model.safetensors").write_bytes(b"theirs")
    return folder


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_checkpoints_of_other_trainers_and_runs_are_neither_used_nor_deleted(whole, tmp_path):
    run = tmp_path / "run"
    theirs = foreign(run)
    another_run = run / "checkpoint-000777"
    shutil.copytree(whole[0] / "checkpoint-000003", another_run)
    before = files_of(theirs) | files_of(another_run)
    trainer_of(run, save_total_limit=1).train()
    assert [p.name for p in checkpoints_in(run, trainer_of(run).run.run_id)] == [
        "checkpoint-000003"
    ]
    trainer = trainer_of(run, resume_from_checkpoint="latest", max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert files_of(theirs) | files_of(another_run) == before


def test_a_run_whose_id_is_lost_is_known_by_its_checkpoints(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    (run / "spo_run.json").unlink()
    shutil.rmtree(run / "checkpoint-000003")
    assert_goes_on_exactly(run, whole)


def test_a_kill_between_two_renames_of_one_number_loses_neither(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    (run / "checkpoint-000003").rename(run / ".checkpoint-000003.before.tmp")
    trainer_of(run, resume_from_checkpoint="latest").train()
    assert damage(run / "checkpoint-000003") is None


def test_checkpoints_count_by_number_not_by_name(tmp_path, whole):
    for number in (999_999, 1_000_000):
        state = checkpoint.read_state(whole[0] / "checkpoint-000003") | {"step": number}
        state["checksum"] = checkpoint._checksum_of_state(state)
        folder = tmp_path / f"checkpoint-{number:06d}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps(state))
    assert [path.name for path in checkpoints_in(tmp_path)][-1] == "checkpoint-1000000"


def test_a_folder_in_the_way_of_a_checkpoint_is_put_aside(tmp_path):
    mine = foreign(tmp_path / "run", "checkpoint-000002")
    before = list(files_of(mine).values())
    trainer_of(tmp_path / "run").train()
    assert damage(tmp_path / "run" / "checkpoint-000002") is None
    aside = tmp_path / "run" / "checkpoint-000002.old-1"
    assert list(files_of(aside).values()) == before


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(whole, tmp_path):
    run = copy_of(whole, tmp_path)
    mine = [
        *("notes.txt", "rollouts/notes.txt", "rollouts/step-000001.csv", "critic/mine.bin"),
        *(
            "checkpoint-best/model.bin",
            "checkpoint-500/trainer_state.json",
            "rollouts/step-1.parquet",
        ),
    ]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    trainer_of(run, max_steps=1, overwrite_output_dir=True)
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert left == {*mine, "spo_run.json"}


def test_a_persons_own_readme_is_put_aside(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "README.md").write_text("mine")
    trainer = runs.make_trainer(run, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert (run / "README.md.old-1").read_text() == "mine"
    assert not list(run.rglob("*.old-2"))
    assert "Segment Policy Optimization" in (run / "README.md").read_text()
    assert [path.name for path in run.rglob("*.old-*")] == ["README.md.old-1"]


def test_an_adapter_of_the_run_before_does_not_stay_beside_a_full_model(tmp_path):
    run = tmp_path / "run"
    runs.make_trainer(run, peft_config=LoraConfig(**runs.LORA), max_steps=1).train()
    assert (run / "adapter_config.json").exists()
    runs.make_trainer(run, max_steps=1, overwrite_output_dir=True).train()
    assert not (run / "adapter_config.json").exists()


# --- by the clock, and how many stay -----------------------------------------------------------
def test_checkpoints_by_time_need_not_be_asked_for_and_the_newest_two_stay(tmp_path):
    trainer = trainer_of(tmp_path / "run", save_steps=0, save_minutes=1e-9, max_steps=5)
    trainer.train()
    assert [p.name for p in checkpoints_in(tmp_path / "run")] == [
        "checkpoint-000003",
        "checkpoint-000004",
    ]


def test_a_default_run_loses_at_most_fifteen_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("spo.run.run.time.monotonic", lambda: now[0])

    def eight_minutes(completions, **columns):
        now[0] += 480
        return [1.0] * len(completions)

    trainer_of(tmp_path / "run", save_steps=0, max_steps=5, reward_funcs=eight_minutes).train()
    names = [p.name for p in checkpoints_in(tmp_path / "run")]
    assert names == ["checkpoint-000002", "checkpoint-000004"]


def test_the_last_good_one_stays_until_the_new_one_can_be_read(tmp_path, monkeypatch):
    run = tmp_path / "run"
    trainer_of(run, max_steps=2, save_total_limit=1).train()
    monkeypatch.setattr(checkpoint, "damage", lambda path: "a disk that lies")
    trainer = trainer_of(run, save_total_limit=1)
    trainer.save_checkpoint(9)
    assert [p.name for p in checkpoints_in(run)] == ["checkpoint-000002", "checkpoint-000009"]


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
        trainer_of(run, save_steps=0, callbacks=[Do(fails)], resume_from_checkpoint="auto").train()
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


# --- numbers that are none ---------------------------------------------------------------
@pytest.mark.parametrize("network", ["policy", "critic"])
def test_weights_that_are_not_finite_are_not_saved(network, tmp_path):
    def poison(control):
        learner = trainer.policy if network == "policy" else trainer.critic.network
        learner.trainable[0].data.view(-1)[0] = math.inf

    trainer = trainer_of(tmp_path / "run", callbacks=[Do(poison, step=3)])
    with pytest.raises(
        NonFiniteLossError, match=r"not finite; it was not saved, .*intact: .*000002"
    ):
        trainer.train()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert last_good(tmp_path / "run").name == "checkpoint-000002"


def test_a_broken_model_is_not_saved_at_the_end_either(tmp_path):
    def poison(control):
        trainer.policy.trainable[0].data.view(-1)[0] = math.nan

    trainer = trainer_of(tmp_path / "run", save_steps=2, callbacks=[Do(poison, step=3)])
    with pytest.raises(NonFiniteLossError, match=r"no model was saved, .*intact: .*000002"):
        trainer.train()
    assert not (tmp_path / "run" / "model.safetensors").exists()


# --- what saving needs -------------------------------------------------------------------
def test_a_generation_config_that_cannot_be_saved_is_mended_before_training(tmp_path, capsys):
    model = runs.policy()
    model.generation_config.do_sample = False
    model.generation_config.temperature = 0.6
    model.generation_config.top_p = 0.9
    runs.make_trainer(tmp_path / "run", model=model).train()
    assert "temperature, top_p beside do_sample=False" in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    assert not {"temperature", "top_p"} & saved.keys()
    assert saved["eos_token_id"] == model.generation_config.eos_token_id


def broken_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.init_kwargs["secret"] = object()
    tokenizer.save_pretrained = None  # type: ignore[assignment]
    return tokenizer


class NotJson:
    pass


def test_what_would_fail_at_the_end_fails_before_the_first_step(tmp_path):
    model = runs.policy()
    model.config.mine = NotJson()
    for given in ({"processing_class": broken_tokenizer()}, {"model": model}):
        with pytest.raises(
            ValueError, match=r"would fail after training, at the (tokenizer|policy)"
        ):
            runs.make_trainer(tmp_path / "run", **given)


def test_a_model_that_cannot_be_saved_after_all_is_kept_in_a_checkpoint(tmp_path, whole):
    def refuse(*args, **kwargs):
        raise RuntimeError("shared tensors")

    trainer = trainer_of(tmp_path / "run", save_steps=0)
    trainer.model.save_pretrained = refuse
    with pytest.raises(SaveError, match=r"shared tensors; nothing is lost, .*checkpoint-000003\."):
        trainer.train()
    again = trainer_of(tmp_path / "run", save_steps=0, resume_from_checkpoint="auto")
    again.train()
    assert runs.same_bits(whole[1], runs.weights_of(again))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_hub_is_asked_before_training(tmp_path):
    """There is no network here."""
    with pytest.raises(ValueError, match="push_to_hub cannot reach the repository 'a/b'"):
        runs.make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="a/b")


def test_an_upload_that_fails_says_that_the_model_is_saved(tmp_path, monkeypatch):
    def fails(self, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("spo.run.saving.create_repo", lambda *args: "a/b")
    monkeypatch.setattr("spo.run.saving.HfApi.upload_folder", fails)
    trainer = runs.make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="a/b")
    with pytest.raises(SaveError, match=r"is saved in .*no route; repeat it"):
        trainer.train()
    assert (tmp_path / "run" / "model.safetensors").exists()


# --- disks -------------------------------------------------------------------------------
FULL = """
import resource, sys
sys.path[:0] = ["tests"]
import tiny_runs as runs
from spo.errors import SaveError
from transformers import TrainerCallback
class Fill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
settings = {"value_model": "policy", "save_steps": 1, "max_steps": 3}
trainer = runs.make_trainer(sys.argv[1], callbacks=[Fill], **settings)
try:
    trainer.train()
except SaveError as error:
    print("SAID", error)
"""


@pytest.mark.parametrize(
    "size", [4_000, *(pytest.param(size, marks=pytest.mark.slow) for size in (60_000, 200, 0))]
)
def test_a_disk_that_takes_no_more_is_one_sentence_and_the_last_one_is_good(size, whole, tmp_path):
    """No file may grow beyond a size from step 2 on, whatever is being written."""
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(run), str(size)],
        cwd=runs.REPO,
        env=os.environ | {"PYTHONPATH": str(runs.REPO)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("SAID")]
    assert "checkpoint-000001. A checkpoint takes" in said, said
    assert "--resume_from_checkpoint latest" in said
    assert [p.name for p in checkpoints_in(run)] == ["checkpoint-000001"]
    assert not list(run.glob(".checkpoint-*"))
    assert_goes_on_exactly(run, whole)


def test_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(SaveError, match=r"a checkpoint needs \S+ MiB and .* has 0 MiB"):
        trainer_of(tmp_path / "run").train()
    assert not list((tmp_path / "run").glob("*checkpoint*"))


def test_a_folder_that_vanishes_is_one_sentence(tmp_path):
    def vanish(control):
        shutil.rmtree(tmp_path / "run")

    trainer = trainer_of(tmp_path / "run", callbacks=[Do(vanish, step=2)])
    with pytest.raises(
        SaveError, match=r"^Step 2: .* was moved or deleted; .*intact: .*000002"
    ) as error:
        trainer.train()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path", ["x" * 300, "/".join(["y" * 200] * 25), "/proc/nowhere/run", "/dev/null/run", "a\0b"]
)
def test_a_folder_that_cannot_be_is_one_sentence_before_anything_else(path, tmp_path):
    path = path if path.startswith("/") else f"{tmp_path}/{path}"
    with pytest.raises(ValueError, match=r"output_dir|null byte") as error:
        runs.make_trainer(path)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_sentence_before_training(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"output_dir .*Permission denied"):
        runs.make_trainer(tmp_path / "run")


def test_a_folder_that_becomes_read_only_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    trainer = trainer_of(tmp_path / "run", save_steps=2, callbacks=[Do(lambda _: None)])
    monkeypatch.setattr("spo.run.run.save_rollouts", refuse)
    with pytest.raises(SaveError, match="Step 1: rollouts could not be written: Permission denied"):
        trainer.train()
    assert last_good(tmp_path / "run").name == "checkpoint-000001", "the step is not lost"


# --- two writers ---------------------------------------------------------------------------------
def test_two_trainers_do_not_write_to_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("spo.run.folder.LOCK_SECONDS", 0.1)
    refusals = []

    def second(control):
        with pytest.raises(RunFolderError, match="Another trainer is writing to") as refused:
            trainer_of(tmp_path / "run", resume_from_checkpoint="auto").train()
        refusals.append(refused)

    trainer_of(tmp_path / "run", callbacks=[Do(second)]).train()
    assert refusals
    assert [line["step"] for line in runs.metrics_of(tmp_path / "run")] == [1, 2, 3]


# --- two processes -------------------------------------------------------------------------------
def test_what_one_of_two_processes_wishes_both_do(tmp_path):
    """Process 1 alone asks for a checkpoint, an evaluation, and to stop; 0 alone cannot write."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(runs.free_port())}
    logs = [tmp_path / f"log-{rank}" for rank in "01"]
    processes = [
        run_elsewhere.start("wishes", tmp_path, log, world | {"RANK": rank, "LOCAL_RANK": rank})
        for rank, log in zip("01", logs, strict=True)
    ]
    codes = [process.wait(120) for process in processes]
    assert codes == [0, 0], logs[0].read_text() + logs[1].read_text()
    lines = runs.metrics_of(tmp_path / "wishes")
    assert [line["step"] for line in lines if "eval/reward" in line] == [0, 2, 3]
    assert [line["step"] for line in lines if "reward" in line] == [1, 2, 3]
    assert [p.name for p in checkpoints_in(tmp_path / "wishes")] == ["checkpoint-000001"]
    for log in logs:
        assert "Step 1: rollouts could not be written: full" in log.read_text()


# --- loss scaling --------------------------------------------------------------------------------
@pytest.mark.parametrize("lam_critic", [1.0, 0.9])
def test_a_batch_without_anything_to_learn_leaves_the_loss_scaler_usable(lam_critic, tmp_path):
    """Step 2 has no scorable completion, step 1 and 3 have: float16's scaler goes on."""
    calls = []

    def reward(completions, **columns):
        calls.append(None)
        nothing = len(calls) in (2,)
        return [None if nothing else float(i % 3) for i in range(len(completions))]

    trainer = runs.make_trainer(
        tmp_path / "run",
        reward_funcs=reward,
        max_steps=4,
        value_model="policy",
        lam_critic=lam_critic,
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.accelerator.scaler = scaler
    for optimizer in trainer.accelerator._optimizers:
        optimizer.__init__(optimizer.optimizer, device_placement=False, scaler=scaler)
    before = runs.weights_of(trainer)
    with pytest.warns(UserWarning, match="Step 2: no completion could be scored"):
        trainer.train()
    assert not runs.same_bits(before, runs.weights_of(trainer))
    assert trainer.state.global_step == 4
