"""One run: its folder, its callbacks, its reports, its checkpoints.

begin -> (log_step, save_rollouts, save_checkpoint) of every step -> end
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerState

from spo.config import SPOConfig
from spo.errors import NonFiniteLossError
from spo.rollouts import Credit, Rollouts, save_rollouts
from spo.run import folder
from spo.run.callbacks import Callbacks
from spo.run.reporter import Reporter


class Run:
    """What happens around the algorithm.

    Attributes:
        output_dir: the run's folder; `name` is what trackers, rollouts and the card call it.
        state, control: Transformers' TrainerState and TrainerControl.
    """

    def __init__(self, args: SPOConfig, accelerator: Accelerator, output_dir: Path, max_steps: int):
        self.args, self.accelerator, self.output_dir = args, accelerator, output_dir
        self.name, self.max_steps = args.run_name or output_dir.name, max_steps
        self.state = TrainerState(
            max_steps=max_steps, is_world_process_zero=accelerator.is_main_process
        )
        self.reporter = Reporter(args, accelerator, output_dir, max_steps)

    def listen(self, callbacks: Sequence[Any], **handed: Any) -> None:
        """Tell these callbacks what happens, with `handed` by keyword at every event."""
        self.callbacks = Callbacks(callbacks, self.args, self.state, handed)
        self.control = self.callbacks.control

    def begin(self, resume_from_checkpoint: str | bool | None, weights: dict[str, Any]) -> int:
        """Restore a checkpoint into `weights`, if asked for; returns the steps already done."""
        resume = resume_from_checkpoint or self.args.resume_from_checkpoint
        if not (resume or self.state.global_step) and folder.checkpoints_in(self.output_dir):
            folder.refuse_another_run(self.output_dir)
        start = 0
        if resume:
            path = folder.find_checkpoint(self.output_dir, resume)
            start = folder.restore_checkpoint(self.accelerator, path, weights, self.max_steps)
        self.state.global_step = start
        self.reporter.begin(start, resumed=bool(resume))
        if self.accelerator.is_main_process:
            folder.write_config(self.output_dir, self.args)
        self.callbacks.call("on_train_begin")
        return start

    def log_step(self, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """Metrics of a finished step, to everybody who listens."""
        self.state.global_step, self.state.epoch = step, epoch
        self.reporter.log_step(step, epoch, metrics)
        self.callbacks.call("on_log", logs=metrics)
        self.callbacks.call("on_step_end")

    def log_evaluation(self, metrics: dict[str, float]) -> None:
        self.reporter.log_eval(self.state.global_step, metrics)
        self.callbacks.call("on_evaluate", metrics=metrics)

    def save_rollouts(self, rollouts: Rollouts, credit: Credit) -> None:
        """The Parquet file of a step, every `save_rollouts_steps`."""
        if (
            is_due(rollouts.step, self.args.save_rollouts_steps)
            and self.accelerator.is_main_process
        ):
            path = self.output_dir / "rollouts" / f"step-{rollouts.step:06d}.parquet"
            save_rollouts(rollouts, path, credit, self.args, self.name)

    def save_checkpoint(self, step: int, weights: dict[str, torch.Tensor]) -> Path:
        path = folder.save_checkpoint(
            self.accelerator, self.output_dir, step, weights, self.name, self.args.save_total_limit
        )
        self.callbacks.call("on_save")
        return path

    def wants_evaluation(self, step: int) -> bool:
        """After the last step, every `eval_steps`, and where a callback asks for it."""
        asked, self.control.should_evaluate = self.control.should_evaluate, False
        last = step == self.max_steps or self.control.should_training_stop
        return asked or last or is_due(step, self.args.eval_steps)

    def wants_checkpoint(self, step: int) -> bool:
        """Every `save_steps`, and where a callback asks for it."""
        asked, self.control.should_save = self.control.should_save, False
        return asked or is_due(step, self.args.save_steps)

    def explain(
        self, error: NonFiniteLossError, rollouts: Rollouts, credit: Credit | None
    ) -> NonFiniteLossError:
        """The error with what a person can do; its rows are saved for a look at them."""
        name = f"non-finite-step-{rollouts.step:06d}-process-{self.accelerator.process_index}"
        path = folder.save_offending_rows(
            rollouts, credit, error.rows, self.output_dir / f"{name}.parquet", self.args, self.name
        )
        return NonFiniteLossError(
            f"Step {rollouts.step}: {error}; nothing was updated with it, the rows are in {path} "
            "and the last checkpoint is intact. Lower the learning rate.",
            error.rows,
        )


def is_due(step: int, every: int) -> bool:
    """Every so many steps; 0: never."""
    return every > 0 and step % every == 0
