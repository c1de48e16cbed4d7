"""benchmarks/results/*.json and the flags' help -> the generated blocks of README.md.

python scripts/update_readme.py            # rewrite the blocks
python scripts/update_readme.py --check    # exit 1 if they are out of date
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_spo  # noqa: E402
from spo.cli import options_table  # noqa: E402
from spo.config import SPOConfig  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def flags() -> str:
    return options_table((train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig))


def quickstart() -> str:
    """Accuracy before and after, per seed."""
    result = _result("quickstart")
    rows = [
        f"| {run['seed']} | {run['before']:.3f} | {run['after']:.3f} | "
        f"{run['after'] - run['before']:+.3f} | {run['seconds']:.0f} |"
        for run in result["runs"]
    ]
    head = ["| seed | held-out accuracy before | after | gain | seconds |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", _source(result)])


def memory() -> str:
    """Predicted peaks of the card recipes; measured ones where the benchmark has run."""
    lines = ["| card | recipe | predicted peak |", "|---|---|---|"]
    estimated = _result("memory_estimated")
    for row in estimated["rows"]:
        name = f"card_{row['card_gb']}gb.yaml"
        lines.append(
            f"| {row['card_gb']} GB | `recipes/{name}` ({row['shape']}) | "
            f"{row['predicted_gib']:.1f} GiB (estimated) |"
        )
    lines += ["", "512 + 512 tokens, 8 generations, critic included. " + _source(estimated)]
    if (RESULTS / "memory_cpu.json").is_file():
        lines += ["", *_memory_on_cpu(_result("memory_cpu"))]
    return "\n".join(lines)


def _memory_on_cpu(result: dict) -> list[str]:
    lines = [
        "| SmolLM2-135M, LoRA r=8, CPU | peak resident | above start | predicted | s/step |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['name']} | {row['peak_gib']:.2f} GiB | {row['above_start_gib']:.2f} GiB | "
            f"{row['predicted_gib']:.2f} GiB | {row['seconds']['median']:.1f} |"
        )
    return [*lines, "", _source(result)]


def smollm2() -> str:
    result = _result("smollm2")
    return (
        f"{result['steps']} steps of SmolLM2-135M (`recipes/smollm2.yaml`, 8 completions of up to "
        "32 tokens a step, LoRA policy and critic on one base) took "
        f"{result['seconds']:.0f} s, start included, and {result['peak_gib']:.1f} GiB of memory at "
        f"the peak. {_source(result)}"
    )


def inspector() -> str:
    return (ROOT / "docs" / "inspector.md").read_text().rstrip()


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _source(result: dict) -> str:
    machine = result["machine"]
    return (
        f"<sub>`{result['command']}`, commit {result['commit']}, torch "
        f"{result['versions']['torch']}, {machine['cores']} cores</sub>"
    )


def render(text: str) -> str:
    """The README with every block whose source exists filled in."""
    for block in (flags, quickstart, memory, smollm2, inspector):
        try:
            body = block()
        except FileNotFoundError:
            continue
        name = block.__name__
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)  # noqa: B023
    return text


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text()
    rendered = render(text)
    if "--check" in sys.argv[1:]:
        return int(text != rendered)
    path.write_text(rendered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
