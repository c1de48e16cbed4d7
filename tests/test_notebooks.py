"""The notebooks run from top to bottom, as somebody without a GPU runs them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


def printed(name: str, tmp_path: Path) -> str:
    """Run a notebook in a folder beside the repository's parts; all text it puts out."""
    for part in ("spo", "train_spo.py", "assets"):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept free of results
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path / "notebooks")}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)  # the charts
    texts = [o.get("text", "") + o.get("data", {}).get("text/html", "") for o in outputs]
    return "".join(texts)


def test_training_makes_the_model_better(tmp_path):
    text = printed("train.ipynb", tmp_path)
    before, after = map(float, re.search(r"before and after: ([\d.]+) ([\d.]+)", text).groups())
    assert after > before
    assert "<answer>" in text  # the trained model, used with Transformers alone
    assert (tmp_path / "runs" / "notebook" / "model.safetensors").is_file()


def test_the_credit_is_read_from_saved_rollouts(tmp_path):
    text = printed("credit.ipynb", tmp_path)
    assert re.search(r"entropy +value +advantage +segment", text)
    assert "border-left" in text  # a segment that starts, in colour
    first, last = map(float, re.search(r"last tenth: (-?[\d.]+) (-?[\d.]+)", text).groups())
    assert first < last  # the critic knows more at the end
