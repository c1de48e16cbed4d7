"""A run of three steps with checkpoints, to be copied, harmed and resumed by several tests."""

import shutil
from pathlib import Path

import tiny_runs as runs
from transformers import TrainerCallback

from spo.run.checkpoint import damage


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
    """Three steps, a checkpoint after each."""
    settings = {"value_model": "policy", "save_steps": 1, "max_steps": 3}
    return runs.make_trainer(run, **settings | given)


def train_whole(run: Path):
    """The folder of such a run, and its weights."""
    trainer = trainer_of(run)
    trainer.train()
    return run, runs.weights_of(trainer)


def copy_of(whole, tmp_path: Path) -> Path:
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_goes_on_exactly(run, whole, resume="latest"):
    """In the end it is the run that was never stopped."""
    trainer = trainer_of(run, resume_from_checkpoint=resume)
    trainer.train()
    assert runs.same_bits(whole[1], runs.weights_of(trainer))
    assert runs.metrics_of(run) == runs.metrics_of(whole[0])
    assert damage(run / "checkpoint-000003") is None
