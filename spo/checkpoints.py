"""A run's folder: output directory, checkpoints, the saved model, upload.

A checkpoint is complete or invisible: it is written under a temporary name and renamed.
"""

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from spo import models
from spo.advantages import Credit
from spo.config import SPOConfig
from spo.model_card import model_card
from spo.rollouts import Rollouts, save_rollouts, select_rows

if TYPE_CHECKING:
    from spo.trainer import SPOTrainer

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


def write_config(trainer: "SPOTrainer") -> None:
    if trainer.accelerator.is_main_process:
        (trainer.output_dir / CONFIG_FILE).write_text(trainer.args.to_json_string() + "\n")


def run_id(output_dir: Path, args: SPOConfig) -> str:
    return args.run_name or output_dir.name


def save_offending_rows(
    trainer: "SPOTrainer", rollouts: Rollouts, credit: Credit, rows, step: int
) -> Path:
    """The whole prompt groups of the given rows, for a look at what broke the loss."""
    groups = sorted({int(row) // rollouts.num_generations for row in rows})
    size = rollouts.num_generations
    chosen = [group * size + i for group in groups for i in range(size)]
    returns = credit.token_returns
    part = Credit(
        credit.segment_ids[chosen],
        credit.token_advantages[chosen],
        None if returns is None else returns[chosen],
        credit.entropy_threshold,
    )
    rank = trainer.accelerator.process_index
    path = trainer.output_dir / f"non-finite-step-{step:06d}-process-{rank}.parquet"
    return save_rollouts(select_rows(rollouts, chosen), path, part, trainer.args, trainer.run_id)


# --- checkpoints -----------------------------------------------------------------------------


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in output_dir.glob("checkpoint-*") if (path / STATE_FILE).is_file())


def save_checkpoint(trainer: "SPOTrainer", step: int) -> Path:
    """Trained weights, optimizer, schedule, random states and the step."""
    accelerator, output_dir = trainer.accelerator, trainer.output_dir
    final = output_dir / f"checkpoint-{step:06d}"
    temporary = output_dir / f".checkpoint-{step:06d}.tmp"
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        save_file(trained_weights(trainer), temporary / WEIGHTS_FILE)
        state = {"step": step, "world_size": accelerator.num_processes, "run_id": trainer.run_id}
        (temporary / STATE_FILE).write_text(json.dumps(state))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        if trainer.args.save_total_limit is not None:
            for old in checkpoints_in(output_dir)[: -trainer.args.save_total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def trained_weights(trainer: "SPOTrainer") -> dict[str, torch.Tensor]:
    """Every parameter that training changes, by network and position."""
    parameters = {"policy": trainer.policy.parameters}
    if trainer.critic is not None:
        parameters["critic"] = trainer.critic.parameters
    weights = {
        f"{name}.{i}": parameter.detach().contiguous()
        for name, of_network in parameters.items()
        for i, parameter in enumerate(of_network)
    }
    if trainer.path_value is not None:
        weights |= {f"path_value.{k}": v for k, v in trainer.path_value.state().items()}
    return weights


def resume(trainer: "SPOTrainer", checkpoint: str | bool) -> int:
    """Restore a checkpoint into the trainer; returns the steps it had done."""
    path = find_checkpoint(trainer.output_dir, checkpoint)
    state = json.loads((path / STATE_FILE).read_text())
    if state["step"] > trainer.max_steps:
        raise ValueError(
            f"{path} has done {state['step']} steps, more than max_steps={trainer.max_steps}."
        )
    saved = load_file(path / WEIGHTS_FILE)
    current = trained_weights(trainer)
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in current.items()}:
        raise ValueError(
            f"{path} was written by a run with other models or adapters than this one; resume with "
            "the flags of that run."
        )
    for name, parameter in current.items():
        parameter.copy_(saved[name])
    trainer.accelerator.load_state(str(path))
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


def save_model(trainer: "SPOTrainer", output_dir: Path) -> Path:
    """Policy at the top, critic in `critic/`, both in Hugging Face form; card and config."""
    if trainer.accelerator.is_main_process:
        policy = trainer.policy.model
        if isinstance(policy, PeftModel):
            policy.save_pretrained(output_dir, selected_adapters=[models.POLICY])
        else:
            policy.save_pretrained(output_dir)
        trainer.processing_class.save_pretrained(output_dir)
        if trainer.critic is not None:
            _save_critic(trainer, output_dir / "critic")
        write_config(trainer)
        (output_dir / "README.md").write_text(model_card(trainer))
    trainer.accelerator.wait_for_everyone()
    return output_dir


def _save_critic(trainer: "SPOTrainer", folder: Path) -> None:
    """A sequence-classification checkpoint, or, on a shared base, an adapter of one."""
    critic = trainer.critic
    trainer.processing_class.save_pretrained(folder)
    if trainer.path_value is not None:
        trainer.path_value.save(folder)
    if critic.model is not trainer.policy.model:
        critic.model.save_pretrained(folder)
        return
    config = critic.model.peft_config[models.CRITIC]
    state = get_peft_model_state_dict(critic.model, adapter_name=models.CRITIC)
    state["base_model.model.score.weight"] = critic.head.weight.detach()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
    saved = json.loads(json.dumps(config.to_dict(), default=_jsonable))
    saved |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"], "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True))


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def push_to_hub(trainer: "SPOTrainer", commit_message: str, **kwargs: Any) -> str | None:
    """Upload the saved model, the critic and the card; checkpoints and rollouts stay here."""
    trainer.accelerator.wait_for_everyone()
    if not trainer.accelerator.is_main_process:
        return None
    from huggingface_hub import HfApi

    api = HfApi()
    repo_id = trainer.args.hub_model_id or trainer.output_dir.name
    repo_id = api.create_repo(repo_id, private=trainer.args.hub_private_repo, exist_ok=True).repo_id
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=trainer.output_dir,
        commit_message=commit_message,
        ignore_patterns=["checkpoint-*", ".checkpoint-*", "rollouts/*", "*.tmp"],
        **kwargs,
    )
