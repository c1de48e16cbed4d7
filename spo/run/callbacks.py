"""Transformers' TrainerCallbacks, told what happens and listened to."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from spo.config import SPOConfig


class Callbacks:
    """Calls each callback with the state; they answer by setting flags of `control`.

    Args:
        handed: what every event gets by keyword: model, processing_class, optimizer, lr_scheduler.
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        args: SPOConfig,
        state: TrainerState,
        handed: dict[str, Any],
    ):
        self.args, self.state, self.handed = args, state, handed
        self.control = TrainerControl()
        self.callbacks: list[TrainerCallback] = [
            c() if isinstance(c, type) else c for c in callbacks
        ]

    def call(self, event: str, **kwargs: Any) -> None:
        """`event` is a method of TrainerCallback, such as "on_step_end"."""
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, **self.handed, **kwargs)
