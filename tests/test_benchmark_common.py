"""benchmarks/common.py: memory that is the block's own, commands without private paths."""

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "benchmarks"))

import common  # noqa: E402

MIB = 2**20


def allocate(mib: int) -> tuple[int, int]:
    """Peak and increase of a block that holds `mib` MiB for a moment."""
    with common.MemoryMeter() as meter:
        block = bytearray(b"x") * (mib * MIB)
        del block
    return meter.peak, meter.increase


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be reset")
def test_a_fresh_process_reports_its_own_peak_not_its_parents():
    block = bytearray(b"x") * (600 * MIB)  # getrusage would hand this down through exec
    peak, increase = common.in_fresh_process(allocate, 150)
    assert len(block) == 600 * MIB
    assert 140 * MIB < increase < 200 * MIB
    assert peak < 600 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be reset")
def test_an_earlier_peak_does_not_show_through():
    allocate(300)
    _, increase = allocate(50)
    assert 40 * MIB < increase < 100 * MIB


def test_the_command_names_no_private_path(monkeypatch):
    script = str(REPOSITORY / "benchmarks" / "update.py")
    inside, outside = f"--model={REPOSITORY / 'models' / 'm'}", "--output_dir=/somewhere/else/out"
    monkeypatch.setattr(sys, "argv", [script, inside, outside, "--smoke"])
    expected = "python benchmarks/update.py --model=models/m --output_dir=out --smoke"
    assert common.command() == expected
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "262144")
    assert common.command() == f"MALLOC_MMAP_THRESHOLD_=262144 {expected}"
