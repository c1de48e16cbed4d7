"""Errors that training raises and a caller may want to catch."""

from collections.abc import Sequence


class NonFiniteLossError(RuntimeError):
    """A loss, or what it is made of, became NaN or infinite; nothing was updated with it.

    Attributes:
        rows: the completions of the rollout batch where it showed.
    """

    def __init__(self, what: str, rows: Sequence[int]):
        super().__init__(what)
        self.rows = rows
