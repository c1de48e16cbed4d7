"""One step of everything in a folder that is thrown away -> what a step and the run will cost."""

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spo.config import SPOConfig
from spo.run import folder

try:
    import resource
except ImportError:  # Windows
    resource = None

PHASES = ("generate", "score", "credit", "update")


def rehearse(build: Callable[[SPOConfig], Any], args: SPOConfig) -> None:
    """Sample, score, update, evaluate and save once as the run would, and say what was measured.

    The step is a whole one, so that its time and its memory are those of the run. Trackers and the
    hub are left alone, and nothing is written where the run will be.

    Args:
        build: settings -> a trainer.

    Raises:
        ValueError, RewardError, StoppedError: as the run itself would.
    """
    if args.output_dir and not (args.resume_from_checkpoint or args.overwrite_output_dir):
        folder.refuse_another_run(Path(args.output_dir))
    with tempfile.TemporaryDirectory(prefix="spo-dry-run-") as place:
        trainer = build(small(args, place))
        trainer.accelerator.print("\n".join(_measured(trainer, args)))
        trainer.accelerator.wait_for_everyone()


def small(args: SPOConfig, place: str) -> SPOConfig:
    """The same for one step in another folder; a copy, as what was accepted need not be again."""
    changed = copy.copy(args)
    changed.output_dir, changed.overwrite_output_dir = place, True
    changed.resume_from_checkpoint = None
    changed.max_steps, changed.value_warmup_steps = 1, 0  # the policy is updated, too
    changed.eval_strategy, changed.load_best_model_at_end = "no", False
    changed.save_strategy, changed.save_minutes = "no", 0
    changed.report_to, changed.push_to_hub = [], False
    changed.log_completions, changed.disable_tqdm = False, True
    return changed


def _measured(trainer: Any, args: SPOConfig) -> list[str]:
    device = trainer.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    held_out, trainer.eval_dataset = trainer.eval_dataset, None
    trainer.train()
    step = next(line for line in trainer.state.log_history if "reward" in line)
    seconds = {phase: step[f"time/{phase}"] for phase in PHASES}
    total = sum(seconds.values())
    parts = ", ".join(f"{phase} {spent:.1f}" for phase, spent in seconds.items())
    count = args.rollout_batch_size(trainer.accelerator.num_processes)
    length = step["completions/mean_length"]
    lines = ["dry run: a step of everything went through; what it took:"]
    lines += [f"step        {total:.1f} s: {parts} ({count} completions of {length:.0f} tokens)"]
    lines += [f"evaluation  {_evaluation(trainer, held_out, args)}"]
    lines += [f"checkpoint  {_checkpoint(trainer)}"]
    lines += [f"memory      {_peak(device)}"]
    steps = trainer.prompts.num_steps(args.max_steps, args.num_train_epochs)
    lines += [
        f"the run     {steps} steps: about {_duration(steps * total)}, evaluations and checkpoints "
        "apart; the first step is slower than the others, and answers may grow"
    ]
    return lines


def _evaluation(trainer: Any, held_out: Any, args: SPOConfig) -> str:
    """Of as many prompts as are sampled at a time."""
    if held_out is None:
        return "no held-out prompts"
    named = held_out if isinstance(held_out, dict) else {"eval": held_out}
    prompts = sum(map(len, named.values()))
    first = next(iter(named.values()))
    tried = min(len(first), args.per_device_eval_batch_size * trainer.accelerator.num_processes)
    trainer.eval_dataset = first.select(range(tried))
    begun = time.perf_counter()
    trainer.evaluate()
    spent = time.perf_counter() - begun
    return f"{spent:.1f} s for {tried} prompts: {_duration(spent * prompts / tried)} for {prompts}"


def _checkpoint(trainer: Any) -> str:
    begun = time.perf_counter()
    path = Path(trainer.save_checkpoint(1))
    spent = time.perf_counter() - begun
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{size / 2**20:,.0f} MiB in {spent:.1f} s"


def _peak(device: torch.device) -> str:
    """The highest so far, of this process: of the card where there is one."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of the card at the peak"
    if resource is None:
        return "is not told by this system"
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    number = kibibytes / (2**30 if sys.platform == "darwin" else 2**20)
    return f"{number:.1f} GiB of this process at the peak"


def _duration(seconds: float) -> str:
    """
    >>> _duration(5), _duration(90), _duration(7260)
    ('5 s', '2 min', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
