"""Metrics -> progress bar, metrics.jsonl, trackers, and tables of sampled completions."""

import json
import math
import re
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from spo.config import SPOConfig
from spo.devices import wait_for
from spo.rollouts import Credit, Rollouts
from spo.run import completions
from spo.run.folder import replace_text

BAR_FORMAT = "{n_fmt}/{total_fmt} {bar} {desc}"


class Reporter:
    """Everything a person or a tracker sees; writes on the main process only."""

    def __init__(self, args: SPOConfig, accelerator: Accelerator, output_dir: Path, max_steps: int):
        self.args, self.accelerator, self.max_steps = args, accelerator, max_steps
        self.path = output_dir / "metrics.jsonl"
        self.is_main = accelerator.is_main_process
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.bar: tqdm | None = None
        self.show_bar = self.is_main and not args.disable_tqdm and sys.stderr.isatty()
        self.tracking = bool(args.report_to)
        self.output_dir = output_dir
        self.told_of_truncated = False

    def begin(self, step: int, resumed: bool) -> list[dict[str, Any]]:
        """Open the bar and the trackers; on resuming, forget metrics after the checkpoint, and
        return those before it."""
        history: list[dict[str, Any]] = []
        if self.is_main and resumed and self.path.exists():
            history = self._forget_after(step)
        if self.tracking:
            flat = {
                k: v for k, v in self.args.to_dict().items() if isinstance(v, int | float | str)
            }
            self.accelerator.project_configuration.set_directories(str(self.output_dir))
            self.accelerator.project_configuration.logging_dir = str(self.output_dir)
            self.accelerator.init_trackers(self.args.run_name or "spo", config=flat)
        if self.show_bar:
            self.bar = tqdm(
                total=self.max_steps, initial=step, bar_format=BAR_FORMAT, dynamic_ncols=True
            )
        return history

    def _forget_after(self, step: int) -> list[dict[str, Any]]:
        """Drop metrics of later steps, and what is none: a line that a kill cut off, for one.

        Returns what stays, by the names of Transformers' history.
        """
        lines = self.path.read_text(errors="replace").splitlines(keepends=True)
        parsed = [_parsed(line) for line in lines]
        if bad := [line for line, entry in zip(lines, parsed, strict=True) if entry is None]:
            self.print(f"{self.path}: {len(bad)} lines that are no metrics are dropped.")
        kept = [
            (line, entry)
            for line, entry in zip(lines, parsed, strict=True)
            if entry is not None and entry["step"] <= step
        ]
        replace_text(self.path, "".join(line for line, _ in kept))
        for _, entry in kept:
            metrics = {name: value for name, value in entry.items() if name != "step"}
            if metrics and all(name.startswith("eval/") for name in metrics):
                self._remember(entry["step"], metrics)
        return [{underscored(name): v for name, v in entry.items()} for _, entry in kept]

    def _remember(self, step: int, metrics: dict[str, float]) -> None:
        """For the report and the model card; several data sets make one line there."""
        if self.evaluations and self.evaluations[-1][0] == step:
            before = self.evaluations[-1][1]
            if not before.keys() & metrics.keys():
                self.evaluations[-1] = (step, before | metrics)
                return
        self.evaluations.append((step, metrics))

    def log_step(self, step: int, epoch: float, metrics: dict[str, float], due: bool) -> None:
        """The bar, and where it is due a line of metrics.jsonl and the trackers."""
        self._warn_of_truncated(metrics["completions/clipped_ratio"])
        if due:
            self.write(step, {"epoch": round(epoch, 4)} | metrics)
            if self.is_main and not self.show_bar:
                print(f"{step}/{self.max_steps} {summary(metrics)}", flush=True)
        if self.bar is not None:
            self.bar.set_description_str(summary(metrics) + self._time_left(), refresh=False)
            self.bar.update(1)

    def _warn_of_truncated(self, ratio: float) -> None:
        """Once: what is cut off seldom earns a reward, so the run would learn to be short."""
        if ratio <= 0.5 or self.told_of_truncated or not self.is_main:
            return
        self.told_of_truncated = True
        masked = "" if self.args.mask_truncated_completions else ", set mask_truncated_completions"
        warnings.warn(
            f"{ratio:.0%} of the completions of a step were cut off: raise max_completion_length="
            f"{self.args.max_completion_length}{masked}, or see that the model ends its answers.",
            stacklevel=2,
        )

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        """A line of its own, and the trackers; "eval_reward" is "eval/reward" there."""
        metrics = {slashed(name): value for name, value in metrics.items()}
        self._remember(step, metrics)
        self.write(step, metrics)
        of_functions = [name for name in metrics if name.startswith("eval/rewards/")]
        hidden = of_functions if len(of_functions) == 1 else []  # it is the reward itself
        shown = {
            name.removeprefix("eval/").removesuffix("/mean"): value
            for name, value in metrics.items()
            if name not in (*hidden, "eval/completions/mean_length")
        }
        found = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        self.print(f"step {step} held-out: {found}")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """To metrics.jsonl and the trackers."""
        if self.tracking:
            self.accelerator.log(metrics, step=step)
        if self.is_main:
            clean = {name: _as_json(value) for name, value in metrics.items()}
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step} | clean) + "\n")

    def _time_left(self) -> str:
        rate = self.bar.format_dict
        done = rate["n"] + 1 - rate["initial"]
        left = int(rate["elapsed"] / max(done, 1) * (self.max_steps - rate["n"] - 1))
        return f" {left // 60}:{left % 60:02d} left"

    def show_completions(self, step: int, rollouts: Rollouts, credit: Credit) -> None:
        """Every few steps a small table of completions with their rewards, and all of them to the
        trackers that show tables."""
        args = self.args
        if not (self.is_main and args.log_completions and step % args.log_completions_steps == 0):
            return
        stride = max(len(rollouts) // args.num_completions_to_print, 1)
        rows = range(0, len(rollouts), stride)[: args.num_completions_to_print]
        self.print(completions.for_terminal(step, rollouts, rows))
        if self.tracking:
            table = completions.for_trackers(step, rollouts, credit)
            for tracker in self.accelerator.trackers:
                completions.send(tracker, table, step)

    def print(self, text: str) -> None:
        """Print above the bar, if there is one."""
        if not self.is_main:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
        for tracker in self.accelerator.trackers if self.tracking else ():
            tracker.finish()  # end_training would part the processes before the model is saved


def slashed(name: str) -> str:
    """
    >>> slashed("eval_math_reward")
    'eval/math_reward'
    """
    return re.sub("^(eval|test)_", r"\1/", name)


def underscored(name: str) -> str:
    """The other way round: what Transformers calls it."""
    return re.sub("^(eval|test)/", r"\1_", name)


def _as_json(value: Any) -> Any:
    """None where it is not finite; a number of NumPy or PyTorch is one."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None where it is none, or not a whole one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith("\n") and isinstance(entry, dict) and type(entry.get("step")) is int
    return entry if whole else None


class PhaseTimer:
    """Seconds of each phase of a step, waiting for the device so that they are its own."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str):
        begun = time.perf_counter()
        yield
        wait_for(self.device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun

    def metrics(self, num_tokens: int) -> dict[str, float]:
        """Seconds per phase since the last call, and sampled tokens over all of them."""
        rate = num_tokens / sum(self.seconds.values())
        times = {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        self.seconds = {}
        return times | {"tokens_per_second": rate}


def summary(metrics: dict[str, Any]) -> str:
    """The line beside the bar: fits 80 columns."""
    parts = [f"reward {metrics['reward']:.2f}"]
    if "kl" in metrics:
        parts.append(f"kl {metrics['kl']:.3f}")
    parts.append(f"H {metrics['entropy']:.2f}")
    parts.append(f"seg {metrics['spo/mean_segments_per_sequence']:.1f}")
    if "spo/explained_variance" in metrics:
        parts.append(f"ev {metrics['spo/explained_variance']:.2f}")
    parts.append(f"{metrics['tokens_per_second']:.0f} tok/s")
    return " ".join(parts)


def closing_words(
    run: Path, evaluations: list[tuple[int, dict[str, float]]], has_critic_network: bool
) -> str:
    """Before and after, where everything is, and how to look at it."""
    lines = [""]
    if len(evaluations) > 1:
        (first, before), (last, after) = evaluations[0], evaluations[-1]
        both = before.keys() & after.keys()
        found = [name for name in after if name in both and name.endswith("accuracy")]
        for name in found or [name for name in after if name in both and name.endswith("reward")]:
            lines += [
                f"held-out {name.removeprefix('eval/')}: {before[name]:.3f} before, "
                f"{after[name]:.3f} after (steps {first} and {last})"
            ]
    lines += [f"model     {run}"]
    lines += [f"critic    {run / 'critic'}"] if has_critic_network else []
    lines += [f"metrics   {run / 'metrics.jsonl'}", f"rollouts  {run / 'rollouts'}"]
    lines += [f"inspect   python app.py {run}"]
    return "\n".join(lines)
