"""Transformers' TrainerCallbacks, told what happens and listened to."""

from collections.abc import Sequence
from typing import Any

import torch
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
        control: TrainerControl,
        handed: dict[str, Any],
    ):
        self.args, self.state, self.control, self.handed = args, state, control, handed
        self.callbacks: list[TrainerCallback] = []
        for callback in callbacks:
            self.add(callback)

    def call(self, event: str, **kwargs: Any) -> None:
        """`event` is a method of TrainerCallback, such as "on_step_end"."""
        for callback in self.callbacks:
            handler = getattr(callback, event)
            answer = handler(self.args, self.state, self.control, **self.handed, **kwargs)
            if isinstance(answer, TrainerControl):
                vars(self.control).update(vars(answer))

    def add(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def pop(self, callback: TrainerCallback | type[TrainerCallback]) -> TrainerCallback | None:
        """Take this one, or the first of this class, out; None where there is none."""
        found = (
            one
            for one in self.callbacks
            if one is callback or (isinstance(callback, type) and isinstance(one, callback))
        )
        if (first := next(found, None)) is not None:
            self.callbacks.remove(first)
        return first

    def watch(self, optimizer: Any) -> None:
        """Tell of each step of an optimizer, with the clipped gradients still there before it."""
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper has no hooks
        if isinstance(inner, torch.optim.Optimizer):
            inner.register_step_pre_hook(lambda *_: self.call("on_pre_optimizer_step"))
            inner.register_step_post_hook(lambda *_: self.call("on_optimizer_step"))
