"""When a run logs, evaluates, saves and stops: from settings, callbacks, clock and signals.

Each question is asked once behind a step and, where an epoch ends with it, once more after the
callbacks were told so. All processes find the same answers.
"""

import math
import time

from accelerate import Accelerator
from transformers import TrainerControl, TrainerState

from spo.config import SPOConfig
from spo.run.signals import Signals, agree


class Pace:
    """Attributes:
    control: what callbacks ask for.
    asked_to_save: somebody, or the settings, wanted the checkpoint that is due.
    stop_signal: number of the signal that ends the run behind this step, or 0.
    epoch_over: the next step begins an epoch.
    new_best: the last evaluation was the best so far, and there is no checkpoint of it yet.
    """

    def __init__(self, args: SPOConfig, accelerator: Accelerator, state: TrainerState):
        self.args, self.accelerator, self.state = args, accelerator, state
        self.control = TrainerControl()
        self.signals = Signals()
        state.logging_steps, state.eval_steps, state.save_steps = (
            whole(steps, state.max_steps)
            for steps in (args.logging_steps, args.eval_steps, args.save_steps)
        )
        self.asked_to_save, self.stop_signal = True, 0
        self.begin(0)

    def begin(self, start: int) -> None:
        """A run goes on behind the step `start`."""
        self.control.should_training_stop = False
        self.epoch_over, self.new_best = True, False
        self.saved(start)

    def saved(self, step: int) -> None:
        """There is a checkpoint of this step."""
        self.last_saved, self.saved_step = time.monotonic(), step

    def begin_step(self) -> None:
        """Forget what was asked for behind the step before."""
        self.epoch_over = False
        control = self.control
        control.should_log = control.should_evaluate = control.should_save = False

    def finish_step(self, step: int, epoch: float) -> None:
        """Note where the run is."""
        before = self.state.epoch or 0
        self.state.global_step, self.state.epoch = step, epoch
        self.epoch_over = math.floor(epoch) > math.floor(before) or self._is_last(step)

    def wants_log(self, step: int) -> bool:
        """As `logging_steps` says, after the last step, and where a callback asks for it."""
        first = step == 1 and self.args.logging_first_step
        due = is_due(step, self.state.logging_steps) or self._is_last(step)
        return first or due or self.control.should_log

    def wants_evaluation(self, step: int, epoch_ended: bool = False) -> bool:
        """As `eval_strategy` says, and where a callback asks for it."""
        control, strategy = self.control, self.args.eval_strategy
        wishes = [control.should_evaluate, control.should_training_stop]
        asked, stop = agree(self.accelerator, wishes)
        control.should_evaluate, control.should_training_stop = False, bool(stop)
        if epoch_ended:
            return bool(asked) or strategy == "epoch"
        due = bool(stop) or self._is_last(step) or is_due(step, self.state.eval_steps)
        return bool(asked) or (due and strategy == "steps")

    def wants_checkpoint(self, step: int, trouble: bool, epoch_ended: bool = False) -> bool:
        """As `save_strategy` says, every `save_minutes`, where a callback asks for it, where the
        best evaluation is to be kept, and before an early end."""
        args, control = self.args, self.control
        due = args.save_minutes > 0 and time.monotonic() - self.last_saved >= 60 * args.save_minutes
        wishes = [control.should_save, due and not self._is_last(step), self.signals.number or 0]
        wishes += [trouble, control.should_training_stop]
        asked, due, self.stop_signal, trouble, stop = agree(self.accelerator, wishes)
        control.should_save, control.should_training_stop = False, bool(stop)
        new_best, self.new_best = self.new_best, False
        planned = {
            "steps": not epoch_ended and is_due(step, self.state.save_steps),
            "epoch": epoch_ended,
            "best": new_best,
            "no": False,
        }
        self.asked_to_save = bool(asked) or planned[args.save_strategy]
        unasked = due or self.stop_signal or trouble or (new_best and args.load_best_model_at_end)
        return self.asked_to_save or (bool(unasked) and self.saved_step != step)

    def ends_epoch(self) -> bool:
        """Whether an epoch is over behind this step; the last one is with the run."""
        self.epoch_over |= self.control.should_training_stop
        return self.epoch_over

    def _is_last(self, step: int) -> bool:
        return step == self.state.max_steps


def whole(steps: float, max_steps: int) -> int:
    """A number of steps; below 1 it is a fraction of the run.

    >>> whole(0.1, 25), whole(10, 25), whole(0, 25)
    (3, 10, 0)
    """
    return math.ceil(steps * max_steps) if steps < 1 else int(steps)


def is_due(step: int, every: int) -> bool:
    """Every so many steps; 0: never."""
    return every > 0 and step % every == 0
