"""The policy's adapter -> a folder that another engine reads, named after what is in it."""

import hashlib
import shutil
from pathlib import Path

import torch
from peft import PeftModel

from spo.networks.network import Network


def check_adapter(policy: Network) -> None:
    """An engine that keeps its own copy of the base can be sent an adapter, nothing more.

    Raises:
        ValueError: the policy has none, or one that vLLM cannot apply.
    """
    if not isinstance(policy.model, PeftModel):
        raise ValueError(
            "use_vllm sends the adapter to vLLM after every update, and without one all weights "
            "are trained: add use_peft (or a peft_config), or sample without use_vllm."
        )
    config = policy.model.peft_config[policy.adapter]
    unfit = {
        "use_dora": getattr(config, "use_dora", False),
        "lora_bias": getattr(config, "lora_bias", False),
        "modules_to_save": bool(getattr(config, "modules_to_save", None)),
    }
    if refused := [name for name, is_set in unfit.items() if is_set]:
        raise ValueError(
            f"vLLM cannot apply an adapter with {', '.join(refused)}: leave it out, or sample "
            "without use_vllm."
        )


def adapter_name(policy: Network) -> str:
    """A name for exactly these weights: another step's adapter has another one."""
    digest = hashlib.sha256()
    for weight in policy.trainable:
        digest.update(weight.detach().to("cpu").contiguous().view(torch.uint8).numpy())
    return f"spo-{digest.hexdigest()[:16]}"


def write_adapter(policy: Network, folder: Path) -> Path:
    """The adapter in `folder`/`adapter_name`, whole or not at all."""
    path = folder / adapter_name(policy)
    if path.exists():
        return path
    temporary = folder / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    policy.model.save_pretrained(temporary, selected_adapters=[policy.adapter])
    temporary.rename(path)
    return path


def remove_adapters(folder: Path, keep: Path) -> None:
    """Delete the adapters of earlier steps."""
    for path in folder.glob("spo-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
