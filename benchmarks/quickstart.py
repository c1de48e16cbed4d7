"""The quickstart, once per seed -> held-out accuracy before and after, and its time.

python benchmarks/quickstart.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, write_result


def run(seed: int, steps: int | None) -> dict[str, Any]:
    """The README's command with a seed; the seed decides data order and sampling."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "accelerate.commands.launch", "train_spo.py"]
        command += [f"--seed={seed}", f"--output_dir={folder}"]
        if steps is not None:
            command.append(f"--max_steps={steps}")
        begun = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds = time.perf_counter() - begun
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    accuracy = [(m["step"], m["eval/accuracy"]) for m in metrics if "eval/accuracy" in m]
    return {
        "seed": seed,
        "before": accuracy[0][1],
        "after": accuracy[-1][1],
        "accuracy_by_step": accuracy,
        "explained_variance": metrics[-2].get("spo/explained_variance"),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="fewer than the recipe's")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    runs = []
    for seed in options.seeds:
        runs.append(run(seed, options.steps))
        print(json.dumps(runs[-1]), flush=True)
    gains = [r["after"] - r["before"] for r in runs]
    write_result("quickstart", {"runs": runs, "smallest_gain": min(gains)}, options.out)


if __name__ == "__main__":
    main()
