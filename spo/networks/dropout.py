"""The base's own dropout -> 0. Old log-probs come from evaluation mode, updates run in training
mode: with dropout in between, ratios are not 1 before anything was learned."""

from collections.abc import Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

WORDS = ("drop", "jitter")
"""In the names of numbers that families keep such rates under: attention_dropout, resid_pdrop,
layerdrop, router_jitter_noise."""


def silence_dropout(model: nn.Module) -> list[str]:
    """Set every rate of the base to 0, an adapter's stay; returns which were not, by name."""
    silenced = []
    for module in base_modules(model):
        if isinstance(module, _DropoutNd):
            silenced += ["dropout"] * (module.p > 0)
            module.p = 0.0
        else:
            silenced += _silence_numbers(module)
    configs = (getattr(module, "config", None) for module in model.modules())
    for config in {id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values():
        silenced += _silence_numbers(config)
    return sorted(set(silenced))


def base_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Without what PEFT put beside the model's own layers."""
    yield module
    for name, child in module.named_children():
        if name == "base_layer" or not isinstance(module, BaseTunerLayer):
            yield from base_modules(child)


def _silence_numbers(owner: Any) -> list[str]:
    """Attributes that are read at every pass."""
    names = [
        name
        for name, value in vars(owner).items()
        if any(word in name for word in WORDS) and isinstance(value, float) and 0 < value < 1
    ]
    for name in names:
        setattr(owner, name, 0.0)
    return names
