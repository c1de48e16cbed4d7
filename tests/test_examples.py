"""examples/: each runs, and what it says of itself happens."""

import json
import subprocess
import sys
from pathlib import Path

from spo.rollouts import load_rollouts

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_calculator_is_called_and_answers(tmp_path):
    """Shown nothing but calls, a model of this size writes some of them right after a few steps."""
    command = [sys.executable, str(REPOSITORY / "examples" / "calculator.py")]
    command += ["--shown", "1", "--teach_steps", "80", "--max_steps", "2"]
    command += ["--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tools/call_frequency" in line]
    assert len(steps) >= 2
    assert max(line["tools/call_frequency"] for line in steps) > 0.1
    rollouts = load_rollouts(tmp_path / "run" / "rollouts" / "step-000002.parquet").rollouts
    answered = (rollouts.completion_mask & ~rollouts.actions).any(1)  # tokens of a tool's answer
    assert any("calc[" in rollouts.completions[row] for row in answered.nonzero()[0])
