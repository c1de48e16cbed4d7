"""Transformers' TrainerCallbacks, told what happens and listened to."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState

if TYPE_CHECKING:
    from spo.trainer import SPOTrainer


class Callbacks:
    """Calls each callback with the state; they answer by setting flags of `control`."""

    def __init__(self, callbacks: Sequence[Any], trainer: "SPOTrainer"):
        self.trainer = trainer
        self.callbacks: list[TrainerCallback] = [
            c() if isinstance(c, type) else c for c in callbacks
        ]
        self.control = TrainerControl()
        self.state = TrainerState(
            max_steps=trainer.max_steps,
            is_world_process_zero=trainer.accelerator.is_main_process,
        )

    def call(self, event: str, **kwargs: Any) -> None:
        """`event` is a method of TrainerCallback, such as "on_step_end"."""
        trainer = self.trainer
        for callback in self.callbacks:
            getattr(callback, event)(
                trainer.args,
                self.state,
                self.control,
                model=trainer.policy.model,
                processing_class=trainer.processing_class,
                optimizer=trainer.optimizer,
                lr_scheduler=trainer.lr_scheduler,
                **kwargs,
            )
