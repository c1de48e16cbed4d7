"""Everything that only a card can tell, in one command and so many minutes.

    python benchmarks/card.py --minutes 9            # on a CUDA card; prints each figure as it is
    python benchmarks/card.py --smoke                # every stage on the CPU with tiny shapes

In stages, each of which leaves `results/card_<stage>.json`:

- checks: device placement, 4-bit forward and backward, fp16 with its loss scaler, bf16, resuming
  with the card's random numbers, out of memory under a cap;
- steps: seconds and peaks of 1.5B-, 3B- and 7B-shaped random models under caps of 8 to 24 GB,
  beside what `--estimate_memory` predicts;
- decode: sampled tokens per second, beside Transformers' `generate` and vLLM where installed;
- trl: a step beside that of TRL's Transformers backend.

Each figure is a process of its own, so that a crash costs that one alone; what the time does not
reach is said. A stage ends with its share of the minutes.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, write_result

sys.path.append(str(ROOT / "tests"))

import torch
from card_checks import CHECKS
from card_shapes import DECODERS, STEPS, TRAINERS, decode, side_by_side, step

Task = Callable[[bool], dict[str, Any]]
"""smoke -> figures."""

STAGES: dict[str, dict[str, Task]] = {
    "checks": dict(CHECKS),
    "steps": {name: lambda smoke, name=name: step(name, smoke) for name in STEPS},
    "decode": {name: lambda smoke, name=name: decode(name, smoke) for name in DECODERS},
    "trl": {name: lambda smoke, name=name: side_by_side(name, smoke) for name in TRAINERS},
}
SHARES = {"checks": 0.2, "steps": 0.65, "decode": 0.8, "trl": 1.0}
"""Of the minutes, when a stage has to be done."""

FIGURES = "figures of the task: "
"""Before the JSON that a task prints; libraries print as well."""

LEAST = 15
"""Seconds below which nothing is begun."""


def run_apart(stage: str, name: str, seconds: float) -> dict[str, Any]:
    """One task in a process of its own; a failure or the end of the time is its figure."""
    if seconds < LEAST:
        return {"skipped": "no time left"}
    command = [sys.executable, __file__, "--task", stage, name]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as task:
        try:
            said, complaint = task.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"skipped": f"not done after {seconds:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):  # vLLM's processes hold the card, too
                os.killpg(task.pid, signal.SIGKILL)
    lines = [line for line in said.splitlines() if line.startswith(FIGURES)]
    if task.returncode or not lines:
        return {"failed": complaint[-2000:]}
    return json.loads(lines[-1].removeprefix(FIGURES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--smoke", action="store_true", help="on the CPU, tiny, in seconds")
    parser.add_argument("--task", nargs=2, metavar=("STAGE", "NAME"), help="one figure, as JSON")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results, build with --smoke")
    options = parser.parse_args()
    if not (options.smoke or torch.cuda.is_available()):
        parser.error("there is no CUDA card here; --smoke tries every stage on the CPU")
    if options.task:
        stage, name = options.task
        print(FIGURES + json.dumps(STAGES[stage][name](False), allow_nan=False), flush=True)
        return
    out = options.out or (ROOT / "build" / "benchmarks" if options.smoke else RESULTS)
    if options.smoke:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the CPU, even where there is a card
        torch.set_num_threads(1)  # tiny matrices: a second thread would only be waited for
    begun, kind = time.monotonic(), "smoke" if options.smoke else "measured"
    for stage in options.stages:
        rows: dict[str, Any] = {}
        for name, task in STAGES[stage].items():
            left = 60 * options.minutes * SHARES[stage] - (time.monotonic() - begun)
            rows[name] = task(True) if options.smoke else run_apart(stage, name, left)
            print(f"{stage}, {name}: {json.dumps(rows[name])}", flush=True)
            write_result(f"card_{stage}", {"kind": kind, "rows": rows}, out)


if __name__ == "__main__":
    main()
