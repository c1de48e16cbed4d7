"""Short runs of SPOTrainer on tiny models, and what they leave behind: shared by several tests."""

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tiny import EOS, byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import TrainerCallback

from spo import SPOConfig, SPOTrainer
from spo.networks.sharding import whole
from spo.rollouts import SavedRollouts, load_rollouts

REPO = Path(__file__).parent.parent
TIMES = ("time/", "tokens_per_second")
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def policy(seed: int = 0):
    """Less flat than random weights are, and one token in six ends a completion: ragged rows."""
    model = tiny_llama(seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.generation_config.eos_token_id = [EOS, *range(40)]
    return model


def critic(seed: int = 1):
    return tiny_reward_model(seed=seed)


def prompts(count: int = 8) -> Dataset:
    """Prompts of different lengths."""
    return Dataset.from_dict(
        {"prompt": ["sum: " + "1 + " * (i % 3) + str(i) for i in range(count)]}
    )


def distinct(completions, **kwargs) -> list[float]:
    """The reward of the usage examples."""
    return [float(len(set(completion))) for completion in completions]


def low_bytes(completion_ids, **kwargs) -> list[float]:
    """The fraction of tokens below 128."""
    return [sum(i < 128 for i in ids) / len(ids) for ids in completion_ids]


def config(output_dir: Any, **overrides: Any) -> SPOConfig:
    """Two quiet steps of 8 completions of up to 8 tokens."""
    settings = {
        "output_dir": str(output_dir),
        "max_steps": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "entropy_percentile": 0.2,
        "log_completions": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return SPOConfig(**settings | overrides)


def make_trainer(output_dir: Any, model: Any = None, **given: Any) -> SPOTrainer:
    """A trainer of `policy()`; arguments of SPOTrainer by name, all others go to the config."""
    names = (
        "reward_funcs train_dataset eval_dataset processing_class callbacks optimizers peft_config "
        "value_model rollout_func reward_processing_classes quantization_config tools "
        "environment_factory"
    )
    arguments = {name: given.pop(name) for name in names.split() if name in given}
    defaults = {
        "reward_funcs": low_bytes,
        "train_dataset": prompts(),
        "processing_class": byte_tokenizer(),
    }
    torch.set_num_threads(1)  # tiny matrices: a second thread would only be waited for
    model = policy() if model is None else model
    return SPOTrainer(model, args=config(output_dir, **given), **defaults | arguments)


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def free_port() -> int:
    """For the processes of a test to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# --- what a run left behind ------------------------------------------------------------------


def metrics_of(run: Any) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = (Path(run) / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)} for line in lines
    ]


def rollouts_of(run: Any) -> list[SavedRollouts]:
    return [load_rollouts(path) for path in sorted((Path(run) / "rollouts").glob("*.parquet"))]


def weights_of(trainer: SPOTrainer) -> dict[str, np.ndarray]:
    """A copy of everything the optimizer trains, whole."""
    networks = {"policy": trainer.policy, "critic": trainer.critic.network}
    return {
        f"{name}.{i}": whole(parameter.detach()).numpy().copy()
        for name, network in networks.items()
        if network is not None
        for i, parameter in enumerate(network.trainable)
    }


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Largest |a − b| relative to the largest weight of the same tensor."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[k] - b[k]).max() / max(np.abs(a[k]).max(), 1e-3)) for k in a)


def folder(path: Path, model: Any = None) -> str:
    """A model and its tokenizer saved as an ordinary Hugging Face folder."""
    (policy() if model is None else model).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


# --- the script ------------------------------------------------------------------------------


def script_inputs(folder_: Path) -> None:
    """A model, a data file and a reward file beside `folder_`'s runs."""
    folder(folder_ / "model")
    prompts().to_json(folder_ / "problems.jsonl")
    (folder_ / "rewards.py").write_text(
        "def low_bytes(completion_ids, **columns):\n"
        "    return [sum(i < 128 for i in ids) / len(ids) for ids in completion_ids]\n"
    )


def script_flags(output_dir: Path, per_device_train_batch_size: int = 8) -> list[str]:
    """Flags that say what `config` says, for the inputs in the folder of the run."""
    inputs = output_dir.parent
    flags = {
        "model_name_or_path": inputs / "model",
        "dataset_name": inputs / "problems.jsonl",
        "reward_funcs": f"{inputs / 'rewards.py'}:low_bytes",
        "output_dir": output_dir,
        "value_model_path": "policy",
        "per_device_train_batch_size": per_device_train_batch_size,
    }
    plain = config(output_dir, per_device_train_batch_size=per_device_train_batch_size)
    defaults = SPOConfig().to_dict()
    changed = {k: v for k, v in plain.to_dict().items() if v != defaults[k]}
    return [f"--{name}={value}" for name, value in (changed | flags).items()]
