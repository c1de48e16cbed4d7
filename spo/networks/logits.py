"""Numbers of the vocabulary head -> logits: the scale and the cap that some families put there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """f(z) = c · tanh(s · z / c), or s · z without a cap; elementwise.

    Cohere and Granite scale their logits, Gemma 2 caps them; for most families f(z) = z.

    Attributes:
        scale: s, the slope at 0.
        softcap: c, the bound of |f|; None: there is none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, outputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Logits of what the head says; a new tensor in float32 unless nothing is to be done.

        >>> capped = LogitTransform(scale=2.0, softcap=3.0)(torch.tensor([0.001, -100.0]))
        >>> [round(x, 4) for x in capped.tolist()]
        [0.002, -3.0]
        """
        return (
            outputs if self == PLAIN else self.with_slope_(outputs.to(torch.float32, copy=True))[0]
        )

    def with_slope_(
        self, outputs: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."] | None]:
        """Logits, in place, and their slope f′ / s = 1 − tanh²(s · z / c); None where it is 1."""
        if self.softcap is None:
            return (outputs if self.scale == 1 else outputs.mul_(self.scale)), None
        tanh = outputs.mul_(self.scale / self.softcap).tanh_()
        slope = torch.addcmul(torch.ones((), dtype=tanh.dtype, device=tanh.device), tanh, -tanh)
        return tanh.mul_(self.softcap), slope


PLAIN = LogitTransform()
"""f(z) = z."""
