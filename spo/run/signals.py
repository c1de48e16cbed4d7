"""Signals and the end of the launcher -> one wish: stop after this step.

The first signal lets the step and its checkpoint be finished; a second one stops at once.
"""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

CAUGHT = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables that `accelerate launch` and `torchrun` set for the processes they start."""

IMPORTED_BY = (os.getpid(), os.getppid())
ECHO_SECONDS = 1.0
"""A launcher repeats the Ctrl-C that its processes have got from the terminal already."""

WATCH_SECONDS = 0.5


class Signals:
    """While it is entered, remembers the first signal, or that the launcher is gone.

    Signals that are ignored (nohup) or that the program handles itself are left alone.

    Attributes:
        number: of the first signal, None so far; SIGTERM stands for a launcher that is gone.
    """

    def __init__(self):
        self.number: int | None = None
        self.launched = any(name in os.environ for name in LAUNCHERS)
        process, parent = IMPORTED_BY  # as early as can be; a notebook's launcher forks later
        self._launcher = parent if process == os.getpid() else os.getppid()
        self._before: dict[int, Any] = {}
        self._since = 0.0
        self._left = threading.Event()

    def __enter__(self) -> "Signals":
        self.number = None
        numbers = [getattr(signal, name) for name in CAUGHT if hasattr(signal, name)]
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._remember)
        if self.launched:
            self._left.clear()
            threading.Thread(target=self._watch_launcher, daemon=True).start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._left.set()
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if not self.launched:
                self._restore()  # so that the next one is not even waited for by C code
        elif time.monotonic() - self._since > ECHO_SECONDS:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _watch_launcher(self) -> None:
        """A trainer that outlives its launcher would write beside the one started next."""
        while not self._left.wait(WATCH_SECONDS):
            if os.getppid() != self._launcher:
                self.number = self.number or int(signal.SIGTERM)
                return


def agree(accelerator: Accelerator, wishes: list[int]) -> list[int]:
    """The largest of what the processes wish for, by position, so that all do the same."""
    if accelerator.num_processes == 1:
        return [int(wish) for wish in wishes]
    largest = torch.tensor(wishes, dtype=torch.int64, device=accelerator.device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest.tolist()
