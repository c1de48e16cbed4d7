"""Training in other processes than the tests' own: two at once, or one that dies half-way.

python tests/run_elsewhere.py cases FOLDER    # as one of WORLD_SIZE processes
python tests/run_elsewhere.py killed FOLDER   # dies while it writes its third checkpoint
python tests/run_elsewhere.py endless_step FOLDER   # a step that does not end
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tiny_runs as runs
import tool_runs
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from tiny import tiny_llama, tiny_reward_model
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from spo.errors import SaveError
from spo.launch import sharding
from spo.networks.loading import quantization_config
from spo.run import checkpoint as checkpoints
from spo.run import run as run_module


# --- the same training whatever the number of processes --------------------------------------
def run_cases(folder: Path, rank: int, world: int) -> None:
    """Train each case on a global batch of 8 per update; save what this process ended with."""
    cases = (full, shared_critic, all_sources, adapters, nothing_to_learn_from, tools, script)
    for case in cases:
        weights = case(folder, rank, world)
        np.savez(folder / f"{case.__name__}-{rank}.npz", **weights)


def full(folder: Path, rank: int, world: int) -> dict[str, np.ndarray]:
    """Two updates a step, twice each; each process comes with another critic."""

    def build(**overrides):
        return runs.make_trainer(
            folder / "full",
            value_model=runs.critic(seed=1 + rank),
            eval_dataset=runs.prompts(5),
            per_device_train_batch_size=8 // world,
            generation_batch_size=16,
            num_iterations=2,
            max_steps=3,
            save_steps=2,
            beta=0.1,
            adam_epsilon=1e-3,
            **overrides,
        )

    trainer = build()
    assert held(trainer) < 0.55 if sharding() else held(trainer) == 1
    trainer.train()
    weights = runs.weights_of(trainer)
    metrics = runs.metrics_of(folder / "full")

    resumed = build(resume_from_checkpoint="latest")
    resumed.train()
    assert runs.same_bits(weights, runs.weights_of(resumed)), "resuming changed the weights"
    assert metrics == runs.metrics_of(folder / "full"), "resuming changed the metrics"
    return weights


def shared_critic(folder: Path, rank: int, world: int) -> dict[str, np.ndarray]:
    trainer = runs.make_trainer(
        folder / "shared_critic",
        value_model="policy",
        peft_config=LoraConfig(**runs.LORA),
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        mask_truncated_completions=True,
        loss_type="grpo",
        importance_sampling_level="segment",
        adam_epsilon=1e-3,
    )
    trainer.train()
    return runs.weights_of(trainer)


def with_references(count: int = 8) -> Dataset:
    """`runs.prompts` with a worked solution each, but for one row."""
    solutions = ["so " + "ab" * (i % 4) + f" = {i}" for i in range(count)]
    return runs.prompts(count).add_column("solution", [*solutions[:-1], ""])


def all_sources(folder: Path, rank: int, world: int) -> dict[str, np.ndarray]:
    """Whatever a critic may read, in a regression and in the network's prompt."""
    sources = ["surprisal", "reference", "rest", "peers", "history", "hint", "monte_carlo"]
    trainer = runs.make_trainer(
        folder / "all_sources",
        train_dataset=with_references(),
        value_model="policy",
        peft_config=LoraConfig(**runs.LORA),
        value_sources=sources,
        value_reference=["solution", "peer", "memory"],
        value_right_reward=0.5,
        value_prompt="reference",
        value_continuations=3,
        per_device_train_batch_size=8 // world,
        max_steps=3,
        adam_epsilon=1e-3,
    )
    trainer.train()
    return runs.weights_of(trainer)


def held(trainer) -> float:
    """The fraction of policy and critic that this process keeps between two passes."""
    weights = [p for n in (trainer.policy, trainer.critic.network) for p in n.model.parameters()]
    mine = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in weights)
    return mine / sum(p.numel() for p in weights)


def adapters(folder: Path, rank: int, world: int) -> dict[str, np.ndarray]:
    """Two 4-bit bases with LoRA; unscored rows and an odd number of prompts in evaluation, so that
    the processes have unlike numbers of micro-batches."""
    if rank == 0:
        runs.folder(folder / "policy", tiny_llama(hidden_size=64))
        runs.folder(folder / "reward", tiny_reward_model(hidden_size=64))
    PartialState(cpu=True).wait_for_everyone()
    trainer = runs.make_trainer(
        folder / "adapters",
        str(folder / "policy"),
        reward_funcs=none_for_multiples_of_three,
        quantization_config=quantization_config(4, compute_dtype="float32"),
        peft_config=LoraConfig(**runs.LORA),
        value_model_path=str(folder / "reward"),
        value_use_peft=True,
        value_load_in_4bit=True,
        per_device_train_batch_size=8 // world,
        max_tokens_per_micro_batch=1,
        gradient_checkpointing=True,
        eval_dataset=runs.prompts(3),
        per_device_eval_batch_size=1,
        beta=0.1,
        adam_epsilon=1e-3,
    )
    trainer.train()
    saved = runs.rollouts_of(folder / "adapters")
    assert any(np.isfinite(s.rollouts.completion_rewards).sum() % 2 == 1 for s in saved)
    return runs.weights_of(trainer)


def none_for_multiples_of_three(completion_ids, **columns):
    return [None if ids[0] % 3 == 0 else ids[0] / 256 for ids in completion_ids]


def nothing_to_learn_from(folder: Path, rank: int, world: int) -> dict[str, np.ndarray]:
    """In the second step every completion is truncated and masked: no update, not even momentum."""

    def complete(prompts, trainer):
        end = [] if trainer.state.global_step == 1 else [trainer.processing_class.eos_token_id]
        ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        return {"prompt_ids": ids, "completion_ids": [[65 + row[-1] % 7, 66, *end] for row in ids]}

    trainer = runs.make_trainer(
        folder / "nothing_to_learn_from",
        rollout_func=complete,
        reward_funcs=lambda completion_ids, **_: [float(ids[0]) for ids in completion_ids],
        value_model=runs.critic(),
        per_device_train_batch_size=8 // world,
        mask_truncated_completions=True,
        weight_decay=0.1,
        adam_epsilon=1e-3,
    )
    trainer.train()
    return runs.weights_of(trainer)


def tools(folder: Path, rank: int, world: int) -> dict[str, np.ndarray]:
    """A policy that calls tools, several times in a completion."""
    trainer = tool_runs.sampled(
        folder / "tools",
        per_device_train_batch_size=8 // world,
        adam_epsilon=1e-3,
        eval_dataset=tool_runs.chats(3),
    )
    trainer.train()
    return runs.weights_of(trainer)


def script(folder: Path, rank: int, world: int) -> dict[str, np.ndarray]:
    """The command line, with a critic made from the policy."""
    import train_spo

    train_spo.main(runs.script_flags(folder / "script", 8 // world))
    return {}


# --- a run that is killed --------------------------------------------------------------------
def killable_trainer(folder: Path, **overrides):
    return runs.make_trainer(
        folder, value_model=runs.critic(), max_steps=4, save_steps=1, **overrides
    )


def killed(folder: Path) -> None:
    write, written = checkpoints.save_file, []

    def die(tensors, path):
        written.append(path)
        if len(written) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        write(tensors, path)

    checkpoints.save_file = die
    killable_trainer(folder).train()


def endless_step(folder: Path) -> None:
    def wait(completions, **columns):
        (folder / "waiting").touch()
        time.sleep(60)

    runs.make_trainer(folder, reward_funcs=wait).train()


class Wish(TrainerCallback):
    """Process 1 asks for something at each of three steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if os.environ["RANK"] == "1":
            control.should_save = state.global_step == 1
            control.should_evaluate = state.global_step == 2
            control.should_training_stop = state.global_step == 3


def wishes(folder: Path) -> None:
    settings = {"per_device_train_batch_size": 4, "max_steps": 5}
    given = {"callbacks": [Wish], "eval_dataset": runs.prompts(2)}
    runs.make_trainer(folder / "wishes", **given, **settings).train()

    def full(*args):
        raise OSError(28, "full")

    run_module.save_rollouts = full
    try:
        runs.make_trainer(folder / "full", **settings).train()
    except SaveError as error:
        print(error)


def start(
    command: str, folder: Path, log: Path, variables: dict[str, str] | None = None
) -> subprocess.Popen:
    """This file in a process of its own; its output in a file, as a full pipe would stop it."""
    return subprocess.Popen(
        [sys.executable, __file__, command, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.REPO)} | (variables or {}),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )


if __name__ == "__main__":
    if sys.argv[1] in ("killed", "endless_step", "wishes"):
        globals()[sys.argv[1]](Path(sys.argv[2]))
    else:
        run_cases(Path(sys.argv[2]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
