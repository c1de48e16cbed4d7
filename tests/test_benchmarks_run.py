"""Every benchmark runs to its end on something tiny, and the README's tables can be made of it.

`make bench-smoke` runs these alone; benchmarks/learning.py has tests of its own.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import results_tables  # noqa: E402
import update_docs  # noqa: E402

STAGES = ("checks", "steps", "decode", "trl")
QUICKSTART_MODEL = "assets/quickstart"
CASES = [  # arguments, block of the README, what the block has to say
    (
        "update.py --smoke --threads 1 --output_dir",
        "update",
        r"TRL's own .* \d+% of what the hardware gives",
    ),
    ("decoding.py --smoke --out", "decoding", r"two layers, 4 rows, padded \| \d"),
    ("cards.py --smoke --out", "cards", r"unpacked by every process \| \d"),
    ("scaling.py --smoke --steps 1 --out", "scaling", r"vocabulary \| 1,024: \d"),
    (
        f"speed.py --model {QUICKSTART_MODEL} --full --unreachable_token <pad> --threads 1 "
        "--completions 16 --length 24 --repetitions 1 --name speed_smollm2 --out",
        "speed",
        r"24 tokens, 8 of a prompt[\s\S]*critic of features \| \d",
    ),
    (
        "gradients.py --task smoke --batch_size 16 --batches 2 --warm_up 1 --out",
        "gradients",
        r"correlate -?\d",
    ),
    ("breakdowns.py --task smoke --updates 2 --every 2 --out", "breakdowns", r"\| 2 \| \d"),
    ("memory.py --estimate --cards 8 --out", "memory", r"\d GiB \(estimated\)"),
    ("sources.py --smoke --out", "source_costs", r"tokens takes \d"),
    ("critic.py --tasks smoke --steps 4 --repeats 1 --out", "critics", r"`alignment` \| -?\d"),
    ("quickstart.py --seeds 1 --steps 1 --out", "quickstart", r"\| 1 \| 0\.\d+ \| 0\.\d+"),
]


@pytest.mark.parametrize(("arguments", "block", "expected"), CASES, ids=[c[1] for c in CASES])
def test_a_benchmark_runs_and_the_readme_can_show_it(
    arguments, block, expected, tmp_path, monkeypatch
):
    if block in ("speed", "update"):
        pytest.importorskip("trl")
    script, *flags = shlex.split(arguments)
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *flags, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["command"].startswith(f"python benchmarks/{script}")
    assert {"commit", "versions", "machine"} <= set(result)
    machine = result["machine"]
    assert machine["torch_threads"] >= 1
    assert machine["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    if block == "update":  # bfloat16 without the arithmetic for it would take minutes
        dtype = "bfloat16" if machine["bf16_arithmetic"] else "float32"
        assert result["settings"]["dtype"] == dtype
    if block == "gradients":
        path.rename(tmp_path / "gradients_chain_sum.json")
    monkeypatch.setattr(results_tables, "RESULTS", tmp_path)
    (table,) = (function for function in update_docs.BLOCKS if function.__name__ == block)
    assert re.search(expected, table())


def test_the_command_for_a_card_tries_every_stage_on_the_cpu(tmp_path):
    pytest.importorskip("trl")
    pytest.importorskip("bitsandbytes")
    command = [sys.executable, "benchmarks/card.py", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {stage: json.loads((tmp_path / f"card_{stage}.json").read_text()) for stage in STAGES}
    assert all(result["kind"] == "smoke" for result in found.values())
    assert all(result["machine"]["instruction_set"] for result in found.values())
    rows = {stage: result["rows"] for stage, result in found.items()}
    assert rows["checks"]["resume"]["same_bits"]
    assert "Out of memory at" in rows["checks"]["out of memory"]["said"][0]
    assert rows["checks"]["4 bits"]["layers"] > 0
    assert all(row["predicted_gib"] > 0 < row["peak_gib"] for row in rows["steps"].values())
    for engine in ("spo", "spo_modules", "transformers"):
        assert rows["decode"][engine]["tokens_per_second"]["median"] > 0
    assert set(rows["trl"]) == {"spo", "spo_path", "grpo", "trl"}
    assert all(row["seconds"][0] > 0 for row in rows["trl"].values())
    skipped = {name for of in rows.values() for name, row in of.items() if "skipped" in row}
    assert skipped == {"fp16", "vllm"}  # Accelerate has no fp16 on a CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_card_its_command_says_so(tmp_path):
    command = [sys.executable, "benchmarks/card.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA card here; --smoke tries every stage on the CPU" in done.stderr


RESULTS = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))

EARLIER = {
    "breakdowns",
    "critic_chain_sum_habit_24",
    "critic_color_cube_habit_24",
    "gradients_chain_sum",
    "memory_cpu",
    "memory_logits",
    "scaling",
    "smollm2",
    "speed_smollm2",
    "speed_unfragmented",
    "update",
}
"""Measured before torch's threads and instruction set were written down: they name the processor's
instructions. A benchmark that has run again leaves this list."""


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_every_published_figure_names_the_machine_it_was_measured_on(path):
    result = json.loads(path.read_text())
    machine = result["machine"]
    assert re.match(r"(MALLOC_\w+=\d+ )?python benchmarks/", result["command"])
    assert re.search("avx2|avx512", machine["processor"])
    assert machine["cores"] >= 1
    written = {"torch_threads", "instruction_set"} <= set(machine)
    assert written == (path.stem not in EARLIER)
