"""Errors that training raises and a caller may want to catch."""

from collections.abc import Sequence


class StoppedError(RuntimeError):
    """A run cannot go on; one sentence says why, what is safe and what to do."""


class NonFiniteLossError(StoppedError):
    """A loss, or what it is made of, became NaN or infinite; nothing was updated with it.

    Attributes:
        rows: the completions of the rollout batch where it showed.
    """

    def __init__(self, what: str, rows: Sequence[int]):
        super().__init__(what)
        self.rows = rows


class SaveError(StoppedError):
    """Something could not be written: the disk is full, read-only or gone."""


class ShardedMemoryError(StoppedError):
    """One process ran out of memory while others wait for its part of the weights."""


class RunFolderError(ValueError):
    """What is asked of a run's folder cannot be done: another run is in it, or nothing to resume
    from, or what was asked for would not go on from it."""


class EngineError(StoppedError):
    """The engine that samples is gone, refuses, or samples from other weights than the policy's;
    nothing was updated with what it said."""
