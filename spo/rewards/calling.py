"""Reward functions called: each on copies of its own, async ones together, none for ever."""

import asyncio
import concurrent.futures
import functools
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from spo.rewards.logged import RESERVED, accepted

LOOK_SECONDS = 0.2
"""How often to look whether the event loop is still alive."""


class RewardError(RuntimeError):
    """A reward function raised, took too long, or returned what is no reward."""


@dataclass(frozen=True)
class RewardFunction:
    """A reward function under the name its metrics carry."""

    name: str
    call: Callable[..., Any]


class _TimeIsUpError(BaseException):
    """No Exception: a reward that catches all of them must not catch this one."""


def call_functions(
    functions: Sequence[RewardFunction],
    rows: dict[str, list],
    columns: dict[str, list],
    timeout: float | int | None = None,
    of_run: dict[str, Any] | None = None,
) -> list[Any]:
    """What each function returned; async ones wait together.

    `of_run`: what is handed, besides, to those that take it.

    Raises:
        RewardError: one raised, called sys.exit(), or took longer than `timeout` seconds.
    """
    if taken := {*RESERVED} & columns.keys():
        raise ValueError(f"Rename the dataset's columns {taken}: reward functions get others so.")
    outputs: list[Any] = []
    for function in functions:
        try:
            with _deadline(function.name, timeout):
                more = accepted(function.call, of_run or {})
                outputs.append(function.call(**copied(rows), **copied(columns), **more))
        except (Exception, SystemExit) as error:
            for output in filter(inspect.iscoroutine, outputs):
                output.close()
            raise error if isinstance(error, RewardError) else _raised(function, error) from error
    waiting = [i for i, output in enumerate(outputs) if inspect.isawaitable(output)]
    if waiting:
        results = _wait_for([outputs[i] for i in waiting], [functions[i] for i in waiting], timeout)
        for i, result in zip(waiting, results, strict=True):
            if isinstance(result, BaseException):
                raise _raised(functions[i], result) from result
            outputs[i] = result
    return outputs


def copied(value: Any) -> Any:
    """Lists, dicts and arrays anew, all the way down: what a function changes is its own copy."""
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value


def _raised(function: RewardFunction, error: BaseException) -> RewardError:
    reason = (str(error).strip() or "no message").splitlines()[0]
    return RewardError(f"Reward function {function.name!r} raised {type(error).__name__}: {reason}")


def _too_long(names: str, timeout: float) -> RewardError:
    return RewardError(
        f"Reward function {names} took longer than reward_timeout={timeout:g} seconds for a batch."
    )


@contextmanager
def _deadline(name: str, timeout: float | int | None) -> Iterator[None]:
    """Interrupt the main thread, waiting calls of the operating system included, when time is up.

    SIGVTALRM, as SIGALRM is what verifiers limit themselves with.
    """
    main = threading.current_thread() is threading.main_thread()
    if not timeout or not main or not hasattr(signal, "pthread_kill"):
        yield
        return
    running = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if running:
            raise _TimeIsUpError

    before = signal.signal(signal.SIGVTALRM, interrupt)
    target = (threading.main_thread().ident, signal.SIGVTALRM)
    timer = threading.Timer(timeout, signal.pthread_kill, target)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _TimeIsUpError:
        raise _too_long(repr(name), timeout) from None
    finally:
        running = False
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGVTALRM, before)


# --- async functions -------------------------------------------------------------------------


def _wait_for(
    awaitables: list[Any], functions: list[RewardFunction], timeout: float | int | None
) -> list[Any]:
    """What each gave, or what it raised."""
    loop, thread = _event_loop()
    done: set[int] = set()

    async def settled(i: int) -> Any:
        try:
            return await awaitables[i]
        except (Exception, SystemExit) as error:  # SystemExit would end the loop
            return error
        finally:
            done.add(i)

    async def all_settled() -> list[Any]:
        tasks = (settled(i) for i in range(len(awaitables)))
        return await asyncio.gather(*tasks, return_exceptions=True)

    future = asyncio.run_coroutine_threadsafe(all_settled(), loop)
    until = time.monotonic() + (timeout or float("inf"))
    while not future.done():
        concurrent.futures.wait([future], timeout=LOOK_SECONDS)
        late = ", ".join(repr(f.name) for i, f in enumerate(functions) if i not in done)
        if future.done() or (thread.is_alive() and time.monotonic() < until):
            continue
        _event_loop.cache_clear()
        future.cancel()
        if thread.is_alive():
            raise _too_long(late, timeout)
        raise RewardError(
            f"Reward function {late} ended the event loop: something it started stopped it or "
            "called sys.exit()."
        )
    return future.result()


@functools.cache
def _event_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """One loop for the whole run: async clients keep connections tied to the loop they began on."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        with suppress(SystemExit):  # of a task; `_wait_for` sees that the loop has ended
            loop.run_forever()

    thread = threading.Thread(target=run, name="spo-rewards", daemon=True)
    thread.start()
    return loop, thread
