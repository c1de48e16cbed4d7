"""A few faults of each campaign of `make faults`."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest
import tiny_runs as runs

import train_spo
from spo import SPOConfig


@pytest.mark.parametrize("campaign", ["kills.py 3 --kinds lora", "files.py 200", "configs.py 8"])
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


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "settings", [SPOConfig, train_spo.ModelArguments, train_spo.ScriptArguments]
)
def test_no_setting_is_infinite_or_none(settings, number):
    names = [f.name for f in dataclasses.fields(settings) if f.type.startswith("float")]
    for name in names:
        with pytest.raises(ValueError, match=f"^{name}=.* must (be|lie|not be) "):
            settings(**{name: number})
    if settings is SPOConfig:
        assert len(names) > 19
        with pytest.raises(ValueError, match="reward_weights"):
            SPOConfig(reward_weights=[1.0, number])
