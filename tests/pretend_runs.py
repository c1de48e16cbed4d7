"""Runs on the pretend accelerator -> where they computed, whether as on the CPU, and how often the
host waited in each phase, as JSON.

    python tests/pretend_runs.py FOLDER
"""

import json
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import pretend_accelerator
import tiny_runs as runs
import torch
from datasets import Dataset
from peft import LoraConfig

STEPS = 2
WAITS_PER_TOKEN = 2
"""Of the sampler, at most: Transformers looks at the mask of prompts of different lengths."""


def equally_long() -> Dataset:
    return Dataset.from_dict({"prompt": [f"sum: {i} + {i}" for i in range(8)]})


def endless() -> Any:
    """A policy that says a hundred tokens."""
    model = runs.policy()
    model.generation_config.eos_token_id = [258]
    return model


LORA = {"peft_config": LoraConfig(**runs.LORA)}
CASES: dict[str, dict[str, Any]] = {
    "LoRA, shared critic": LORA | {"value_model": "policy", "beta": 0.1},
    "all weights": {"value_model": "policy", "beta": 0.1},
    "separate critic": LORA | {"value_model": runs.critic, "cliprange_value": 0.2},
    "top-p": {"top_p": 0.8, "top_k": 50},
    "features": {"value_features": "surprisal"},
    "evaluation": LORA | {"eval_dataset": runs.prompts},
    "equally long": {"train_dataset": equally_long, "model": endless, "max_completion_length": 48},
    "16-bit policy": LORA | {"model": lambda: runs.policy().bfloat16()},
}


def train(folder: Path, on_cpu: bool, steps: int = STEPS, **given: Any):
    """A short run, and its waits by phase over all steps."""
    given = {name: v() if callable(v) else v for name, v in given.items()}
    trainer = runs.make_trainer(folder, use_cpu=on_cpu, max_steps=steps, **given)
    phases = {name: Counter() for name in ("generate", "score", "credit", "update")}
    timer = trainer.timer

    @contextmanager
    def timed(name: str):
        with timer(name), pretend_accelerator.counted(phases[name]):
            yield

    timed.metrics = timer.metrics
    trainer.timer = timed
    trainer.train()
    return trainer, phases


def compare(folder: Path, **given: Any) -> dict[str, Any]:
    """The same run on the device and on the CPU."""
    trainer, phases = train(folder / "device", False, **given)
    train(folder / "cpu", True, **given)
    pairs = zip(runs.metrics_of(folder / "device"), runs.metrics_of(folder / "cpu"), strict=True)
    networks = [n for n in (trainer.policy, trainer.critic.network, trainer.reference) if n]
    return {
        "devices": sorted({p.device.type for n in networks for p in n.model.parameters()}),
        "metrics": [{k: [ours[k], cpu[k]] for k in ours} for ours, cpu in pairs],
        "waits": phases,
        "tokens": sum(int(s.rollouts.lengths.max()) for s in runs.rollouts_of(folder / "device")),
        "parameters": len(trainer.policy.trainable),
    }


def resume(folder: Path) -> dict[str, Any]:
    """Three steps at once, and in two parts: equal to the bit."""
    given = LORA | {"value_model": "policy", "save_steps": 2, "value_features": "surprisal"}
    whole, _ = train(folder / "whole", False, 3, **given)
    first = runs.make_trainer(
        folder / "parts", use_cpu=False, max_steps=3, callbacks=[runs.StopAfter(2)], **given
    )
    first.train()
    rest = runs.make_trainer(folder / "parts", use_cpu=False, max_steps=3, **given)
    rest.train(resume_from_checkpoint="latest")
    weights = zip(whole.policy.trainable, rest.policy.trainable, strict=True)
    state = rest.optimizer.state_dict()["state"]
    return {
        "same": all(torch.equal(a.cpu(), b.cpu()) for a, b in weights),
        "same_metrics": runs.metrics_of(folder / "whole") == runs.metrics_of(folder / "parts"),
        "optimizer_on": sorted({s["exp_avg"].device.type for s in state.values()}),
    }


def main(folder: Path) -> None:
    pretend_accelerator.register()
    results = {name: compare(folder / str(i), **g) for i, (name, g) in enumerate(CASES.items())}
    results["resume"] = resume(folder / "resume")
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
