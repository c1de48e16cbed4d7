"""What cannot be saved is told in time, in a sentence, and costs nothing that was saved."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import run_elsewhere
import tiny_runs as runs
import torch
from saved_runs import Do, assert_goes_on_exactly, train_whole, trainer_of
from tiny import byte_tokenizer

from spo.errors import NonFiniteLossError, RunFolderError, SaveError
from spo.run import checkpoint
from spo.run.checkpoint import checkpoints_in, last_good


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three steps with a checkpoint after each, and its weights."""
    return train_whole(tmp_path_factory.mktemp("whole") / "run")


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
