"""What a run is, beyond its settings -> may another one go on from its checkpoint?"""

import hashlib
from typing import Any

from spo.config import SPOConfig
from spo.networks.network import Network
from spo.networks.sharding import whole
from spo.prompts import Prompts
from spo.rewards.calling import RewardFunction
from spo.rows import beginning

COSMETIC = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")
"""Settings that may differ without a word."""

FIXED = ("seed", "data_seed", "shuffle_dataset", "optim", "fp16")
"""Settings that cannot be honoured half-way: the place in the data and the moments of the optimizer
are theirs."""

OF_OPTIMIZERS = (
    *("learning_rate", "value_learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "weight_decay"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "updates", "max_steps", "num_train_epochs"),
)
"""Settings of which a checkpoint holds the old values."""


def identity(
    prompts: Prompts,
    updates_per_step: int,
    networks: tuple[Network | None, ...],
    rewards: list[RewardFunction],
) -> dict[str, Any]:
    """What the settings do not say: data, batches, weights that are not trained, adapters."""
    there = [network for network in networks if network is not None]
    return {
        "prompts of a step": prompts.batches.prompts_per_step,
        "updates of a step": updates_per_step,
        "data": _of_prompts(prompts.dataset),
        "frozen weights": _of_frozen(there),
        "adapters": _of_adapters(there),
        "rewards": ", ".join(function.name for function in rewards),
    }


def changes(
    saved: dict[str, Any], args: SPOConfig, now: dict[str, Any]
) -> tuple[list[str], list[str], bool]:
    """What differs from a checkpoint's state: what cannot be honoured, what is, and whether the
    optimizers have to be told."""
    settings = args.to_dict()
    before = {name: saved["config"].get(name, settings[name]) for name in settings}
    differ = {n for n in settings if n not in COSMETIC and before[n] != settings[n]}
    refused = [_change(n, before[n], settings[n]) for n in FIXED if n in differ]
    for name, value in now.items():
        was = saved["identity"].get(name, value)
        if name != "rewards" and was != value:
            shown = name.startswith(("prompts", "updates"))
            refused.append(_change(name, was, value) if shown else f"other {name}")
            if name == "adapters":
                refused[-1] += _adapter_change(was, value)
    honoured = [_change(n, before[n], settings[n]) for n in settings if n in differ - {*FIXED}]
    if (was := saved["identity"].get("rewards", now["rewards"])) != now["rewards"]:
        honoured.append(_change("rewards", was, now["rewards"]))
    return refused, honoured, bool(differ & {*OF_OPTIMIZERS})


def _change(name: str, before: Any, now: Any) -> str:
    return f"{name} {before} -> {now}"


def _adapter_change(before: list[str], now: list[str]) -> str:
    """
    >>> _adapter_change(["policy: r=4, lora_alpha=8"], ["policy: r=8, lora_alpha=8"])
    ' (r=4 -> r=8)'
    >>> _adapter_change(["policy: r=4", "critic: r=4"], ["policy: r=8", "critic: r=8"])
    ' (r=4 -> r=8)'
    """
    settings = [", ".join(adapters).replace(": ", ", ").split(", ") for adapters in (before, now)]
    if len(settings[0]) != len(settings[1]):
        return ""
    pairs = dict.fromkeys(zip(*settings, strict=True))  # policy and critic mostly change alike
    differ = [" -> ".join(pair) for pair in pairs if pair[0] != pair[1]]
    return f" ({', '.join(differ)})" if differ else ""


def _of_prompts(dataset: Any) -> str:
    """All prompts in order, of a stream the first ones."""
    digest = hashlib.sha256()
    for batch in beginning(dataset).select_columns(["prompt_text"]).iter(1000):
        for text in batch["prompt_text"]:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _of_frozen(networks: list[Network]) -> str:
    """The beginning of every weight that is not trained, so that other models of the same shapes
    are noticed."""
    trained = {id(weight) for network in networks for weight in network.trainable}
    digest = hashlib.sha256()
    for model in _models(networks):
        for name, weight in model.named_parameters():
            if id(weight) not in trained:
                start = whole(weight.detach()).flatten()[:64].float().cpu().numpy()
                digest.update(f"{name} {tuple(weight.shape)}".encode() + start.tobytes())
    return digest.hexdigest()


def _models(networks: list[Network]) -> list[Any]:
    """Each once, though policy, reference and critic may share one."""
    return list({id(network.model): network.model for network in networks}.values())


def _of_adapters(networks: list[Network]) -> list[str]:
    """What the shapes of their weights do not show."""
    names = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout")
    configs = [
        (name, config)
        for model in _models(networks)
        for name, config in sorted(getattr(model, "peft_config", {}).items())
    ]
    return [
        f"{name}: " + ", ".join(f"{n}={getattr(config, n, None)}" for n in names)
        for name, config in configs
    ]
