"""Segment Policy Optimization: a trained critic and per-segment credit for one consumer GPU.

The names below load on first use, so that reading rollouts or recomputing credit
(`spo.segments`, `spo.advantages`, `spo.rollouts`, `spo.inspector`) imports no torch.
"""

import logging
import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spo.config import SPOConfig
    from spo.trainer import SPOTrainer

__version__ = "0.1.0"
__all__ = ["SPOConfig", "SPOTrainer"]

# bitsandbytes 0.50 warns at import, on CPUs with AVX512-BF16, that an optional kernel package is
# missing; nothing here uses it
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# PEFT 0.21 asks Transformers 5.23 for an attribute by its old name, once for every adapter
warnings.filterwarnings(
    "ignore", message=".*is_gradient_checkpointing", category=FutureWarning, module="transformers"
)

_HOME = {"SPOConfig": "spo.config", "SPOTrainer": "spo.trainer"}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'spo' has no attribute {name!r}")
