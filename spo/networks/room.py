"""How much is computed at one time; out of memory makes it smaller for good."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from spo.errors import ShardedMemoryError

Part = TypeVar("Part")


@dataclass
class MicroBatchSize:
    """How much of a step is in memory at one time; out of memory makes it smaller for good.

    Attributes:
        max_rows: completions, unless `max_tokens` is set.
        max_tokens: padded tokens of prompt and completion.
    """

    max_rows: int
    max_tokens: int | None = None

    def shrink(self, lengths: np.ndarray) -> bool:
        """Halve the tokens for rows of these total lengths; False when one row is all there is."""
        longest, budget = self._in_use(lengths)
        if budget <= longest:
            return False
        self.max_tokens = max(budget // 2, longest)
        warnings.warn(
            f"Out of memory at {budget} tokens per micro-batch; going on with {self.max_tokens}. "
            f"Set max_tokens_per_micro_batch={self.max_tokens} to start there.",
            stacklevel=2,
        )
        return True

    def too_large(self, lengths: np.ndarray) -> ShardedMemoryError:
        """What a person can do where this process cannot halve alone."""
        longest, budget = self._in_use(lengths)
        return ShardedMemoryError(
            f"Out of memory at {budget} tokens per micro-batch, while the other processes wait for "
            "this one's part of the weights; go on with --max_tokens_per_micro_batch "
            f"{max(budget // 2, longest)} --resume_from_checkpoint auto."
        )

    def _in_use(self, lengths: np.ndarray) -> tuple[int, int]:
        """Tokens of the longest row, and of the largest micro-batch."""
        longest = int(lengths.max())
        return longest, self.max_tokens or longest * min(self.max_rows, len(lengths))


@dataclass
class RowsInFlight:
    """How many completions are sampled at one time; None: all of them."""

    most: int | None = None

    def parts(self, num_rows: int, compute: Callable[[slice], Part]) -> Iterator[Part]:
        """`compute` of one slice of the rows after another; where memory runs out, of half."""
        start = 0
        while start < num_rows:
            count = min(self.most or num_rows, num_rows - start)
            try:
                part = compute(slice(start, start + count))
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
                part = None  # what failed is freed behind this block
            if part is not None:
                yield part
                start += count
                continue
            self.most = count // 2
            torch.cuda.empty_cache()
            warnings.warn(
                f"Out of memory while sampling {count} completions at a time; going on with "
                f"{self.most}. Set per_device_generation_batch_size={self.most} to start there.",
                stacklevel=2,
            )
