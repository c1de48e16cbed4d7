"""A run's rollouts -> assets/sample_rollouts/NAME: a few steps, its evaluations, its curves.

    python scripts/bundle_rollouts.py runs/RUN quickstart

Kept are step 1, every tenth one and the last, all evaluations, metrics.jsonl, and the lines of the
index that are about these files. docs/rollouts.md, docs/method.svg and the pictures of the
inspector show the bundled quickstart: look at them afterwards.
"""

import argparse
import json
import shutil
from pathlib import Path

from spo.run.index import NAME

SAMPLES = Path(__file__).resolve().parent.parent / "assets" / "sample_rollouts"
EVERY = 10


def bundle(run: Path, target: Path) -> list[str]:
    """Replace `target` by what is shown of `run`; returns the names of the rollout files."""
    files = sorted((run / "rollouts").glob("step-*.parquet"))
    steps = {int(path.stem.removeprefix("step-")): path for path in files}
    kept = {step for step in steps if step == 1 or step % EVERY == 0 or step == max(steps)}
    chosen = [steps[step] for step in sorted(kept)]
    evaluations = sorted((run / "rollouts").glob("eval-step-*.parquet"))
    shutil.rmtree(target, ignore_errors=True)
    (target / "rollouts").mkdir(parents=True)
    for path in [*chosen, *evaluations]:
        shutil.copyfile(path, target / "rollouts" / path.name)
    lines = (run / "rollouts" / NAME).read_text().splitlines()
    about = [line for line in lines if is_about(json.loads(line), kept)]
    (target / "rollouts" / NAME).write_text("\n".join(about) + "\n")
    shutil.copyfile(run / "metrics.jsonl", target / "metrics.jsonl")
    return [path.name for path in [*chosen, *evaluations]]


def is_about(line: dict, steps: set[int]) -> bool:
    return line["evaluation"] or line["step"] in steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    print("\n".join(bundle(args.run, SAMPLES / args.name)))


if __name__ == "__main__":
    main()
