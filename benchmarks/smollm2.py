"""A few small steps of recipes/smollm2.yaml -> seconds and peak memory, start-up included.

python scripts/fetch_smollm2.py && python benchmarks/smollm2.py
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import GIB, RESULTS, ROOT, write_result

SMALLER = {
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 32,
    "eval_size": 0,
}
"""8 completions of up to 32 tokens a step, as in the slow test."""

PHASES = ("generate", "score", "update")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--config=recipes/smollm2.yaml", f"--max_steps={options.steps}"]
        flags += [f"--{name}={value}" for name, value in SMALLER.items()]
        command = [sys.executable, "train_spo.py", *flags, f"--output_dir={folder}"]
        begun = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds = time.perf_counter() - begun
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # KiB on Linux
    result = {
        "recipe": "recipes/smollm2.yaml",
        "steps": options.steps,
        "settings": SMALLER,
        "seconds": seconds,
        "peak_gib": peak / GIB,
        "phases": [{phase: m[f"time/{phase}"] for phase in PHASES} for m in metrics],
        "mean_completion_length": [m["completions/mean_length"] for m in metrics],
    }
    print(json.dumps(result))
    write_result("smollm2", result, options.out)


if __name__ == "__main__":
    main()
