"""A run's folder: output directory, checkpoints, the saved model, upload.

A checkpoint is complete or invisible: it is written under a temporary name and renamed.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from spo.config import SPOConfig
from spo.networks.build import CRITIC, POLICY
from spo.networks.network import Network
from spo.rollouts import Credit, Rollouts, save_rollouts, select_rows
from spo.values.critic import Critic

CONFIG_FILE, STATE_FILE, WEIGHTS_FILE = (
    "spo_config.json",
    "trainer_state.json",
    "weights.safetensors",
)
RUN_FILES = (CONFIG_FILE, "metrics.jsonl", "rollouts")
"""What shows that a folder holds a run."""


# --- the output folder -----------------------------------------------------------------------


def prepare_output_dir(args: SPOConfig, accelerator: Accelerator) -> Path:
    """The run's folder, the same on every process; refuses one that holds another run."""
    default = f"runs/{args.run_name or 'spo'}-{time.strftime('%Y%m%d-%H%M%S')}"
    output_dir = Path(broadcast_object_list([args.output_dir or default])[0])
    if output_dir.is_file():
        raise ValueError(f"output_dir {output_dir} is a file; name a folder.")
    overwrite = args.overwrite_output_dir and not args.resume_from_checkpoint
    if not overwrite and not args.resume_from_checkpoint and not checkpoints_in(output_dir):
        refuse_another_run(output_dir)  # with a checkpoint, train() may yet be told to resume
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if overwrite:
            _remove_run(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    return output_dir


def refuse_another_run(output_dir: Path) -> None:
    used = [name for name in RUN_FILES if (output_dir / name).exists()]
    if used:
        raise ValueError(
            f"output_dir {output_dir} holds another run ({', '.join(used)}); choose another "
            "folder, --resume_from_checkpoint latest, or --overwrite_output_dir."
        )


def _remove_run(output_dir: Path) -> None:
    """Delete what a run of SPO writes, and nothing else."""
    for name in (*RUN_FILES, "critic"):
        path = output_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for checkpoint in checkpoints_in(output_dir):
        shutil.rmtree(checkpoint)


def write_config(output_dir: Path, args: SPOConfig) -> None:
    """The resolved configuration, beside what it makes."""
    (output_dir / CONFIG_FILE).write_text(args.to_json_string() + "\n")


def save_offending_rows(
    rollouts: Rollouts, credit: Credit | None, rows: Any, path: Path, args: SPOConfig, run_id: str
) -> Path:
    """The whole prompt groups of the given rows, for a look at what broke the loss.

    Before credit is assigned (None) a completion is one segment of advantage 0.
    """
    size = rollouts.num_generations
    groups = sorted({int(row) // size for row in rows})
    chosen = np.array([group * size + i for group in groups for i in range(size)])
    part = select_rows(rollouts, chosen)
    if credit is None:
        uncut = np.where(part.completion_mask, 0, -1)
        return save_rollouts(
            part, path, Credit(uncut, np.zeros(uncut.shape, np.float32), None), args, run_id
        )
    returns = credit.token_returns
    of_part = Credit(
        credit.segment_ids[chosen],
        credit.token_advantages[chosen],
        None if returns is None else returns[chosen],
        credit.entropy_threshold,
    )
    return save_rollouts(part, path, of_part, args, run_id)


# --- checkpoints -----------------------------------------------------------------------------


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in output_dir.glob("checkpoint-*") if (path / STATE_FILE).is_file())


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    run_id: str,
    save_total_limit: int | None = None,
) -> Path:
    """`weights` (everything that training changes), optimizers, schedules, random states and the
    step."""
    final = output_dir / f"checkpoint-{step:06d}"
    temporary = output_dir / f".checkpoint-{step:06d}.tmp"
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(contiguous, temporary / WEIGHTS_FILE)
        state = {"step": step, "world_size": accelerator.num_processes, "run_id": run_id}
        (temporary / STATE_FILE).write_text(json.dumps(state))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        if save_total_limit is not None:
            for old in checkpoints_in(output_dir)[:-save_total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def restore_checkpoint(
    accelerator: Accelerator, path: Path, weights: dict[str, torch.Tensor], max_steps: int
) -> int:
    """Write a checkpoint into `weights` and what Accelerate prepared; returns the steps it had
    done."""
    state = json.loads((path / STATE_FILE).read_text())
    if state["step"] > max_steps:
        raise ValueError(f"{path} has done {state['step']} steps, more than max_steps={max_steps}.")
    saved = load_file(path / WEIGHTS_FILE)
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in weights.items()}:
        raise ValueError(
            f"{path} was written by a run with other models or adapters than this one; resume with "
            "the flags of that run."
        )
    for name, tensor in weights.items():
        tensor.copy_(saved[name])
    accelerator.load_state(str(path))
    return state["step"]


def find_checkpoint(output_dir: Path, checkpoint: str | bool) -> Path:
    """The folder "latest" (or True) or a path stands for; ValueError if it is no checkpoint."""
    if checkpoint is True or checkpoint == "latest":
        found = checkpoints_in(output_dir)
        if not found:
            raise ValueError(f"There is no complete checkpoint in {output_dir} to resume from.")
        return found[-1]
    if not (Path(checkpoint) / STATE_FILE).is_file():
        raise ValueError(f"{checkpoint} is not a complete checkpoint of SPO.")
    return Path(checkpoint)


# --- the model -------------------------------------------------------------------------------


def save_policy(policy: Network, processing_class: Any, folder: Path) -> None:
    """The policy, or its adapter alone, in Hugging Face form."""
    if isinstance(policy.model, PeftModel):
        policy.model.save_pretrained(folder, selected_adapters=[POLICY])
    else:
        policy.model.save_pretrained(folder)
    processing_class.save_pretrained(folder)


def save_critic(critic: Critic, policy: Network, processing_class: Any, folder: Path) -> None:
    """The critic's network as a sequence-classification checkpoint, or, on a shared base, an
    adapter of one; beside it the sums of the path regression. Nothing without a network."""
    network = critic.network
    if network is None:
        return
    processing_class.save_pretrained(folder)
    if critic.path is not None:
        critic.path.save(folder)
    if network.model is not policy.model:
        network.model.save_pretrained(folder)
        return
    config = network.model.peft_config[CRITIC]
    state = get_peft_model_state_dict(network.model, adapter_name=CRITIC)
    state["base_model.model.score.weight"] = network.head.weight.detach()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
    saved = json.loads(json.dumps(config.to_dict(), default=_jsonable))
    saved |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"], "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True))


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def push_to_hub(output_dir: Path, args: SPOConfig, commit_message: str, **kwargs: Any) -> str:
    """Upload the saved model, the critic and the card; checkpoints and rollouts stay here."""
    from huggingface_hub import HfApi

    api = HfApi()
    repo_id = args.hub_model_id or output_dir.name
    repo_id = api.create_repo(repo_id, private=args.hub_private_repo, exist_ok=True).repo_id
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=output_dir,
        commit_message=commit_message,
        ignore_patterns=["checkpoint-*", ".checkpoint-*", "rollouts/*", "*.tmp"],
        **kwargs,
    )
