"""What precision was asked for, and what the device can do -> what the run computes in.

A device without bfloat16 arithmetic computes in it all the same, number by number: on a CPU with
AVX2 alone a product of matrices takes 10 to 30 times as long as in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

NO_BF16_CPU = "This CPU has no bfloat16 arithmetic, which would be many times slower: "
NO_FP16_CPU = "CPUs do not compute in float16: "
NO_BF16_CARD = "This card has no bfloat16 arithmetic: "
NO_BF16_APPLE = "bfloat16 on Apple's GPUs needs macOS 14: "


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether products of bfloat16 matrices are faster than float32 ones on this CPU.

    On x86 these are AVX512-BF16 and AMX, on ARM the bf16 extension; both where PyTorch and oneDNN
    may use them, which ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA restrict.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    has = torch.cpu.get_capabilities()
    if has.get("architecture") == "x86_64":
        may_use = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return may_use and any(has.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return bool(has.get("bf16"))


def has_bf16(device: torch.device | str) -> bool:
    """Whether the device computes in bfloat16 faster than in float32; NVIDIA's from Ampere on,
    Apple's from macOS 14 on."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return cpu_has_bf16() if kind == "cpu" else True


def resolve_precision(
    bf16: bool,
    fp16: bool,
    device: torch.device | str,
    has_bf16: Callable[[torch.device | str], bool] = has_bf16,
) -> tuple[str, str | None]:
    """Accelerate's name of the mixed precision to use ("bf16", "fp16" or "no"), and a sentence
    where that is not what was asked for.

    >>> resolve_precision(True, False, "cpu", has_bf16=lambda device: False)[0]
    'no'
    """
    kind = torch.device(device).type
    if fp16 and kind == "cpu":
        return "no", NO_FP16_CPU + "computing in float32 instead of fp16."
    if bf16 and not has_bf16(device):
        if kind in ("cuda", "mps"):
            why = NO_BF16_CARD if kind == "cuda" else NO_BF16_APPLE
            return "fp16", why + "computing in fp16 instead of bf16."
        return "no", NO_BF16_CPU + "computing in float32 instead of bf16."
    return ("bf16" if bf16 else "fp16" if fp16 else "no"), None


def computed_in(
    bf16: bool,
    fp16: bool,
    device: torch.device | str,
    has_bf16: Callable[[torch.device | str], bool] = has_bf16,
) -> str:
    """The name of the type that products will run in, those with 4-bit weights too.

    >>> computed_in(True, False, "cuda", has_bf16=lambda device: False)  # a T4
    'float16'
    """
    precision, _ = resolve_precision(bf16, fp16, device, has_bf16)
    return {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
