"""What `accelerate launch` was told -> what SPO makes of it: adopted, said or refused, nothing
ignored in silence.

Accelerate hands its configuration on in environment variables, to be read by each process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from spo.config import SPOConfig
from spo.trl import FSDP2_LINE


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 is to cut the weights.

    Attributes:
        layer_classes: class names of the layers; none: those that the model names.
        reshard_after_forward: free a layer's weights after its forward pass.
    """

    layer_classes: frozenset[str] = frozenset()
    reshard_after_forward: bool = True


def num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> Sharding | None:
    """How the weights are to be cut over the processes; None: every process holds them all."""
    if not _is_true("ACCELERATE_USE_FSDP") or num_processes() == 1:
        return None
    classes = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
    reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    return Sharding(
        layer_classes=frozenset(name.strip() for name in classes if name.strip()),
        reshard_after_forward=reshard not in ("false", "shard_grad_op", "no_shard"),
    )


def check_launch() -> None:
    """Refuse what SPO cannot do, before Accelerate looks for the packages it would take.

    Raises:
        ValueError: one sentence that says what to use instead.
    """
    instead = f"shard the models by FSDP2 instead: {FSDP2_LINE}"
    if _is_true("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "DeepSpeed's engine steps and clips one network, SPO trains policy and critic each "
            f"with its own clip and learning rate; {instead}"
        )
    if _is_true("ACCELERATE_USE_MEGATRON_LM"):
        raise ValueError(f"Megatron-LM wants a model of its own kind; {instead}")
    if _is_true("ACCELERATE_USE_PARALLELISM_CONFIG"):
        raise ValueError(f"A parallelism_config (tensor, context, sequence) is not read; {instead}")
    if precision() not in ("no", "bf16", "fp16"):
        raise ValueError(
            f"accelerate's configuration says mixed_precision: {precision()}; SPO computes in "
            "bf16, fp16 or float32 ('no')."
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise ValueError(
            "dynamo_backend in accelerate's configuration: SPO does not compile models; set it to "
            "'no'."
        )
    if _is_true("ACCELERATE_USE_FSDP"):
        _check_fsdp()


def _check_fsdp() -> None:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError(
            "SPO shards by FSDP2, not by its first version: set fsdp_version: 2, as "
            "recipes/accelerate/fsdp2.yaml does."
        )
    for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING_OFFLOAD"):
        if _is_true(f"FSDP_{name}"):
            raise ValueError(f"fsdp_{name.lower()} is not supported: set it to false.")
    if os.environ.get("FSDP_IGNORED_MODULES"):
        raise ValueError(
            "fsdp_ignored_modules is not supported: leave it out; adapters are never cut."
        )
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP") == "SIZE_BASED_WRAP":
        raise ValueError(
            "SPO cuts models at their layers: set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP."
        )


def wants_cpu() -> bool:
    return _is_true("ACCELERATE_USE_CPU")


def precision() -> str:
    """Accelerate's name of the precision that its configuration asks for."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def adopt_precision(args: SPOConfig, can_do: str) -> None:
    """Take the launcher's `mixed_precision` where the flags ask for none; `can_do` is what the
    device makes of it, which an earlier trainer may have put into `args`.

    Raises:
        ValueError: both ask, and not for the same.
    """
    asked, given = precision(), args.mixed_precision
    if asked == "no" or (given in (asked, can_do) and given != "no"):
        return
    if given != "no":
        raise ValueError(
            f"accelerate's configuration says mixed_precision: {asked}, the flags say --{given}; "
            "change one of them."
        )
    args.bf16, args.fp16 = asked == "bf16", asked == "fp16"


def adopt_rest(args: SPOConfig) -> Iterator[str]:
    """Take over what else the launcher says; a sentence for each thing that is done otherwise."""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if steps not in ("auto", "1", str(args.gradient_accumulation_steps)):
        yield (
            f"accelerate's gradient_accumulation_steps ({steps}) is not used: "
            f"--gradient_accumulation_steps ({args.gradient_accumulation_steps}) is."
        )
    if "MASTER_ADDR" in os.environ and "RANK" not in os.environ and num_processes() == 1:
        yield (
            "accelerate launch starts one process on CPUs, whatever num_processes and FSDP say; "
            "for more of them: torchrun --nproc_per_node 2 train_spo.py --use_cpu ..."
        )
    if not _is_true("ACCELERATE_USE_FSDP"):
        return
    if sharding() is None:
        yield "FSDP2 has one process to cut the weights over: they stay whole."
        return
    if _is_true("FSDP_ACTIVATION_CHECKPOINTING"):
        args.gradient_checkpointing = True
    if _is_true("FSDP_CPU_RAM_EFFICIENT_LOADING"):  # Transformers would leave weights empty
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        yield "fsdp_cpu_ram_efficient_loading is not used: every process reads the weights."
    if os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT") != "FULL_STATE_DICT":
        yield "fsdp_state_dict_type is not used: checkpoints and models are saved whole."


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
