"""Training in other processes than the tests' own: two at once, or one that dies half-way.

python tests/run_elsewhere.py cases FOLDER    # as one of WORLD_SIZE processes
python tests/run_elsewhere.py killed FOLDER   # dies while it writes its third checkpoint
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import tiny_runs as runs
from peft import LoraConfig

from spo.run import folder as checkpoints


# --- the same training whatever the number of processes --------------------------------------
def run_cases(folder: Path, rank: int, world: int) -> None:
    """Train each case on a global batch of 8 per update; save what this process ended with."""
    for case in (full, shared_critic, nothing_to_learn_from, script):
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


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        killed(Path(sys.argv[2]))
    else:
        run_cases(Path(sys.argv[2]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
