"""A trainer's train -> one that has the folder for itself and survives signals."""

import functools
from collections.abc import Callable
from typing import Any

from spo.errors import EngineError
from spo.rewards.calling import RewardError
from spo.run import folder


def guarded(train: Callable) -> Callable:
    """Train as the only one in the folder, and let a signal finish the step."""

    @functools.wraps(train)
    def train_guarded(trainer: Any, resume_from_checkpoint: str | bool | None = None) -> Any:
        run = trainer.run
        with folder.locked(run.output_dir, run.accelerator), run.signals:
            try:
                return train(trainer, resume_from_checkpoint)
            except (RewardError, EngineError):  # before anything of the step was learned
                run.save_finished(trainer._trained())
                raise

    return train_guarded
