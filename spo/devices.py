"""A device -> what can be asked of it."""

import torch
from accelerate import PartialState

from spo import launch

WITH_FLOAT64 = ("cpu", "cuda", "xpu")


def widest_float(device: torch.device) -> torch.dtype:
    """float64 where the device is known to have it; Apple's GPUs, for one, do not."""
    return torch.float64 if device.type in WITH_FLOAT64 else torch.float32


def wait_for(device: torch.device) -> None:
    """Until it has done all that it was told to do."""
    torch.get_device_module(device).synchronize()


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator, behind what other programs and the display hold; None:
    a CPU's, or not known."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def own_device(use_cpu: bool) -> torch.device:
    """This process's, once it has found the others: processes on CPUs find each other only if
    Accelerate is told before anything else asks it."""
    on_cpu = use_cpu or launch.wants_cpu() or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu).device
