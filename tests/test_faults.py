"""A few faults of each campaign of `make faults`."""

import os
import subprocess
import sys

import pytest
import tiny_runs as runs


@pytest.mark.parametrize("campaign", ["kills.py 4", "files.py 300", "configs.py 10"])
def test_a_few_faults(campaign):
    done = subprocess.run(
        [sys.executable, *f"tests/faults/{campaign} --seed 7".split()],
        cwd=runs.REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
