"""What SECURITY.md promises of files: no pickle in results, no code run from a checkpoint.

The inspector's promises are tested in test_inspector_trust.py, the verifiers' in test_rewards.py.
"""

import contextlib
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_runs as runs

REPOSITORY = Path(__file__).resolve().parents[1]


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def is_pickle(path: Path) -> bool:
    """Pickles start with a protocol, PyTorch's files are zip archives that hold some."""
    return path.read_bytes()[:2] in (b"PK", *(b"\x80" + bytes([n]) for n in range(2, 6)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    runs.make_trainer(folder, value_model=runs.critic(), save_steps=1).train()
    return folder


def test_a_run_leaves_no_pickle_outside_checkpoints(run):
    files = [path for path in run.rglob("*") if path.is_file()]
    results = [path for path in files if "checkpoint-" not in str(path.relative_to(run))]
    assert {"model.safetensors", "metrics.jsonl", "step-000001.parquet"} <= {
        p.name for p in results
    }
    assert not [path for path in results if is_pickle(path)]
    weights = run / "checkpoint-000002" / "weights.safetensors"
    assert weights.is_file()
    assert not is_pickle(weights)


POISONED = ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl")


@pytest.mark.parametrize("name", POISONED)
def test_nothing_in_a_checkpoint_is_executed(run, name, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    poisoned, owned = copy / "checkpoint-000002" / name, tmp_path / "owned"
    assert poisoned.is_file() or name.startswith("custom"), "the file is read at all"
    payload = pickle.dumps(Payload(owned))
    poisoned.write_bytes(payload)
    trainer = runs.make_trainer(copy, value_model=runs.critic(), save_steps=1, max_steps=3)
    with contextlib.suppress(Exception):  # refused or, for random states, passed over by Accelerate
        trainer.train(resume_from_checkpoint="latest")
    assert not owned.exists()

    pickle.loads(payload)
    assert owned.exists(), "the payload would have worked"


def test_every_file_the_promises_point_at_exists():
    text = (REPOSITORY / "SECURITY.md").read_text()
    named = [part for part in text.split("`")[1::2] if part.endswith(".py")]
    assert len(named) >= 6
    assert not [name for name in named if not (REPOSITORY / name).is_file()]
