"""SPOConfig -> the Accelerator, and the optimizer and schedule of a network."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, patch_environment
from torch import nn
from transformers import Adafactor, get_scheduler
from transformers.utils import logging

from spo import launch
from spo.config import SPOConfig
from spo.devices import own_device
from spo.precision import resolve_precision

LOG_LEVELS = logging.get_log_levels_dict()


def make_accelerator(args: SPOConfig) -> Accelerator:
    """One process per device; gradients are summed, and weights sharded, by us.

    `bf16` and `fp16` of `args` become what the device computes in, with a printed line where that
    is not what was asked for.
    """
    if not isinstance(args, SPOConfig):
        raise ValueError(f"args is a {type(args).__name__}; give an SPOConfig.")
    launch.check_launch()
    # else the first trainer's precision would bind all later ones of this Python session
    AcceleratorState._reset_state()
    available = list(map(str, get_available_trackers()))
    if "all" in args.report_to:
        args.report_to = available
    if missing := [name for name in args.report_to if name not in available]:
        raise ValueError(
            f"report_to={missing[0]!r}: there is no such tracker, or its package is not "
            f"installed (pip install {missing[0]})."
        )
    if args.tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    if args.log_level != "passive":
        logging.set_verbosity(LOG_LEVELS[args.log_level])
    device = own_device(args.use_cpu)
    asked = launch.precision()
    launch.adopt_precision(args, resolve_precision(asked == "bf16", asked == "fp16", device)[0])
    precision, message = resolve_precision(args.bf16, args.fp16, device)
    args.bf16, args.fp16 = precision == "bf16", precision == "fp16"
    with patch_environment(ACCELERATE_USE_FSDP="false"):  # it would want to prepare one model
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            cpu=device.type == "cpu",
            log_with=args.report_to or None,
            project_dir=args.output_dir or "runs",  # trackers want one; Reporter names the run's
            step_scheduler_with_optimizer=False,
            # else a number in the environment would divide every loss
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    for sentence in (message, *launch.adopt_rest(args)):
        if sentence is not None:
            accelerator.print(sentence)
    return accelerator


def build_optimizer(
    config: SPOConfig, parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer `config.optim` names, of one network.

    Raises:
        ValueError: `optim` needs bitsandbytes and it is not installed.
    """
    parameters = list(parameters)
    if config.optim == "adafactor":
        return Adafactor(
            parameters,
            lr=learning_rate,
            scale_parameter=False,
            relative_step=False,
            weight_decay=config.weight_decay,
        )
    adam = {
        "lr": learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }
    if config.optim in ("adamw_torch", "adamw_torch_fused"):
        return torch.optim.AdamW(parameters, fused=config.optim == "adamw_torch_fused", **adam)
    if parameters[0].device.type == "mps":
        raise ValueError(
            f"optim={config.optim!r}: bitsandbytes has no 8-bit optimizer for Apple's GPUs; choose "
            "adamw_torch."
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"optim={config.optim!r} needs bitsandbytes: pip install bitsandbytes, or choose "
            "adamw_torch."
        ) from error
    return AdamW8bit(parameters, is_paged=config.optim == "paged_adamw_8bit", **adam)


def build_scheduler(config: SPOConfig, optimizer: torch.optim.Optimizer, total_updates: int):
    """The schedule of its learning rate, advanced once per optimizer step.

    Raises:
        ValueError: `lr_scheduler_kwargs` do not fit it.
    """
    kind, given = config.lr_scheduler_type, config.lr_scheduler_kwargs
    try:
        return get_scheduler(
            kind,
            optimizer,
            num_warmup_steps=config.warmup_updates(total_updates),
            num_training_steps=total_updates,
            scheduler_specific_kwargs=given,
        )
    except (TypeError, ValueError) as error:
        reason = str(error).split("() ")[-1]
        raise ValueError(f"lr_scheduler_kwargs={given} do not fit {kind!r}: {reason}.") from error
