"""The generated blocks of both READMEs are what their sources say."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import update_docs  # noqa: E402


@pytest.mark.parametrize("path", update_docs.DOCUMENTS, ids=lambda path: path.parent.name)
def test_generated_blocks_are_up_to_date(path):
    text = path.read_text()
    assert update_docs.render(text) == text, "run: python scripts/update_docs.py"


def test_every_block_has_a_place_in_one_of_them():
    texts = [path.read_text() for path in update_docs.DOCUMENTS]
    for block in update_docs.BLOCKS:
        name = block.__name__
        marks = [f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text for text in texts]
        assert sum(marks) == 1, name


@pytest.mark.parametrize("path", update_docs.DOCUMENTS, ids=lambda path: path.parent.name)
def test_recipes_and_scripts_named_exist(path):
    folders = "recipes|scripts|assets|benchmarks|docs"
    for name in re.findall(rf"((?:{folders})/[\w/.-]+\w)", path.read_text()):
        assert (ROOT / name).exists(), name
