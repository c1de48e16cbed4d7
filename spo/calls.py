"""A person's functions, called so that none runs for ever; async ones wait together on one loop."""

import asyncio
import concurrent.futures
import functools
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

LOOK_SECONDS = 0.2
"""How often to look whether the event loop is still alive."""


class TimeIsUpError(Exception):
    """A call took longer than it may."""


class LoopEndedError(Exception):
    """The event loop ended under a call: something it started stopped it or called sys.exit()."""


class _InterruptError(BaseException):
    """No Exception: a function that catches all of them must not catch this one."""


@contextmanager
def deadline(seconds: float | int | None) -> Iterator[None]:
    """Interrupt the main thread, waiting calls of the operating system included, when time is up.

    SIGVTALRM, as SIGALRM is what verifiers limit themselves with.

    Raises:
        TimeIsUpError: in place of what was interrupted.
    """
    main = threading.current_thread() is threading.main_thread()
    if not seconds or not main or not hasattr(signal, "pthread_kill"):
        yield
        return
    running = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if running:
            raise _InterruptError

    before = signal.signal(signal.SIGVTALRM, interrupt)
    target = (threading.main_thread().ident, signal.SIGVTALRM)
    timer = threading.Timer(seconds, signal.pthread_kill, target)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _InterruptError:
        raise TimeIsUpError from None
    finally:
        running = False
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGVTALRM, before)


def settle(awaitables: Sequence[Any], seconds: float | int | None = None) -> list[Any]:
    """What each gave, or the exception it raised; all wait together, `seconds` at most.

    In the place of what had not ended by then stands a TimeIsUpError, or a LoopEndedError.
    """
    loop, thread = _event_loop()
    settled: dict[int, Any] = {}

    async def one(i: int) -> None:
        try:
            settled[i] = await awaitables[i]
        except (Exception, SystemExit) as error:  # SystemExit would end the loop
            settled[i] = error

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, range(len(awaitables))), return_exceptions=True)

    future = asyncio.run_coroutine_threadsafe(all_of_them(), loop)
    until = time.monotonic() + (seconds or float("inf"))
    while not future.done():
        concurrent.futures.wait([future], timeout=LOOK_SECONDS)
        if future.done() or (thread.is_alive() and time.monotonic() < until):
            continue
        _event_loop.cache_clear()  # it may stand still
        future.cancel()
        missing = TimeIsUpError() if thread.is_alive() else LoopEndedError()
        return [settled.get(i, missing) for i in range(len(awaitables))]
    cancelled = asyncio.CancelledError("cancelled")
    return [settled.get(i, cancelled) for i in range(len(awaitables))]


@functools.cache
def _event_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """One loop for the whole run: async clients keep connections tied to the loop they began on."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        with suppress(SystemExit):  # of a task; `settle` sees that the loop has ended
            loop.run_forever()

    thread = threading.Thread(target=run, name="spo-calls", daemon=True)
    thread.start()
    return loop, thread
