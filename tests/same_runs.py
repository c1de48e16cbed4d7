"""Fingerprints of short runs: are weights, metrics and rollouts the same bits as before a change?

python tests/same_runs.py record before.json     # on the code before
python tests/same_runs.py compare before.json    # on the code after: prints what differs
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

import numpy as np
import tiny_runs as runs
from peft import LoraConfig
from transformers import set_seed

TWICE = {"generation_batch_size": 16, "num_iterations": 2, "max_steps": 3}


def grpo_with_beta(folder):
    return runs.make_trainer(folder, beta=0.1, eval_dataset=runs.prompts(5), max_steps=3)


def critic_first(folder):
    return runs.make_trainer(folder, value_model=runs.critic(), max_steps=4)


def critic_second(folder):
    """Two updates a step, twice each."""
    return runs.make_trainer(
        folder, value_model=runs.critic(), lam_critic=0.9, cliprange_value=0.2, beta=0.1, **TWICE
    )


def shared_critic(folder):
    return runs.make_trainer(
        folder,
        value_model="policy",
        peft_config=LoraConfig(**runs.LORA),
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", 1)),
        gradient_accumulation_steps=2,
        mask_truncated_completions=True,
        loss_type="grpo",
        importance_sampling_level="segment",
        beta=0.05,
        kl_in_reward=True,
        max_steps=3,
        lr_scheduler_type="cosine",
    )


def shared_critic_second(folder):
    return runs.make_trainer(
        folder,
        value_model="policy",
        peft_config=LoraConfig(**runs.LORA),
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", 1)),
        value_warmup_steps=1,
        value_learning_rate=3e-3,
        lam_critic=0.9,
        gradient_checkpointing=True,
        **TWICE,
    )


def path_alone(folder):
    return runs.make_trainer(
        folder, value_features="surprisal", positive_nll_coef=0.5, lam=0.8, max_steps=4
    )


def bfloat16(folder):
    return runs.make_trainer(folder, value_model="policy", bf16=True, num_generations=1)


def resumed(folder):
    settings = {"value_model": "policy", "save_steps": 2, "max_steps": 4, "lam_critic": 0.9}
    runs.make_trainer(folder, **settings).train()
    for line in ("rollouts/step-000003.parquet", "rollouts/step-000004.parquet"):
        (Path(folder) / line).unlink()
    return runs.make_trainer(
        folder, resume_from_checkpoint=f"{folder}/checkpoint-000002", **settings
    )


ONE = (
    grpo_with_beta,
    critic_first,
    critic_second,
    shared_critic,
    shared_critic_second,
    path_alone,
    bfloat16,
    resumed,
)
TWO = (shared_critic, shared_critic_second, critic_second)


def digest(array) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(str((array.shape, array.dtype)).encode() + array.tobytes()).hexdigest()[
        :16
    ]


def fingerprint(trainer, folder) -> dict:
    saved = {}
    for name, network in (("policy", trainer.policy), ("critic", trainer.critic.network)):
        for i, weight in enumerate(network.trainable if network is not None else ()):
            saved[f"{name}.{i}"] = digest(weight.detach().numpy())
    for file in runs.rollouts_of(folder):
        step = file.rollouts.step
        for part, names in (
            (
                file.rollouts,
                "token_ids token_entropies token_logprobs_old token_logprobs_ref "
                "token_values token_rewards completion_rewards",
            ),
            (file.credit, "segment_ids token_advantages token_returns"),
        ):
            for name in names.split():
                array = getattr(part, name)
                saved[f"{step}.{name}"] = None if array is None else digest(array)
    return {"arrays": saved, "metrics": runs.metrics_of(folder)}


def run(case, folder) -> dict:
    set_seed(0)
    trainer = case(folder)
    trainer.train()
    return fingerprint(trainer, folder)


def in_two_processes(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"PYTHONPATH": str(runs.REPO)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "pair", str(folder)],
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]


def all_fingerprints() -> dict:
    with tempfile.TemporaryDirectory() as folder:
        results = {case.__name__: run(case, Path(folder) / case.__name__) for case in ONE}
        in_two_processes(Path(folder))
        results |= json.loads((Path(folder) / "pair-0.json").read_text())
    return results


def main(command: str, path: str) -> int:
    if command == "pair":
        rank = os.environ["RANK"]
        results = {f"two.{c.__name__}": run(c, Path(path) / f"two.{c.__name__}") for c in TWO}
        (Path(path) / f"pair-{rank}.json").write_text(json.dumps(results))
        return 0
    results = all_fingerprints()
    if command == "record":
        Path(path).write_text(json.dumps(results))
        return 0
    before, different = json.loads(Path(path).read_text()), 0
    for case, wanted in before.items():
        found = json.loads(json.dumps(results[case]))
        arrays = [k for k, v in wanted["arrays"].items() if found["arrays"].get(k) != v]
        metrics = [
            (i, k, v, line.get(k))
            for i, (old, line) in enumerate(zip(wanted["metrics"], found["metrics"], strict=True))
            for k, v in old.items()
            if line.get(k) != v
        ]
        different += bool(arrays or metrics)
        print(case, "same" if not (arrays or metrics) else f"DIFFERS {arrays[:12]} {metrics[:6]}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
