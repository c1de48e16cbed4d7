"""A device -> what can be asked of it."""

import torch

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
