"""The README's generated blocks are what their sources say."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import update_readme  # noqa: E402


def test_generated_blocks_are_up_to_date():
    text = (ROOT / "README.md").read_text()
    assert update_readme.render(text) == text, "run: python scripts/update_readme.py"


def test_recipes_and_scripts_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"`?((?:recipes|scripts|assets)/[\w/.]+\w)", text):
        assert (ROOT / name).exists(), name
