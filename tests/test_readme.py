"""README and docs: generated blocks are current; links, commands, names and sentences are real."""

import ast
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import update_docs  # noqa: E402

import train_spo  # noqa: E402
from spo.cli import Parser  # noqa: E402
from spo.config import SPOConfig  # noqa: E402

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *DOCS]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """The page without its code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)


# --- what is generated ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", update_docs.DOCUMENTS, ids=name_of)
def test_generated_blocks_are_up_to_date(path):
    text = path.read_text()
    assert update_docs.render(text) == text, "run: python scripts/update_docs.py"


def test_every_block_has_a_place_on_one_page():
    texts = [path.read_text() for path in update_docs.DOCUMENTS]
    for block in update_docs.BLOCKS:
        name = block.__name__
        marks = [f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text for text in texts]
        assert sum(marks) == 1, name


def test_the_readme_is_read_in_three_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(re.findall(r"\S*\w\S*", text)) <= 900  # a bar of a table is no word


# --- links ----------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The ids that headings get on GitHub and on the site."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), flags=re.M):
        words = re.sub(r"[^\w\s-]", "", heading.lower().replace("`", ""))
        found.add(re.sub(r"\s+", "-", words.strip()))
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if path.name == "inspector.md" and file.startswith("docs/"):
            linked = ROOT / file  # written to be read from the repository's root as well
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_named_exist(path):
    folders = "recipes|scripts|assets|benchmarks|docs|notebooks|tests"
    for name in re.findall(rf"(?<![\w/.])((?:{folders})/[\w/.-]+\w)", path.read_text()):
        assert (ROOT / name).exists() or list(ROOT.glob(f"{name}*")), name


def test_every_page_is_in_the_navigation():
    pages = []

    def collect(entry):
        for value in entry.values():
            pages.append(value) if isinstance(value, str) else [collect(e) for e in value]

    for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]:
        collect(entry)
    assert sorted(pages) == sorted([p.name for p in DOCS] + ["index.md", "benchmarks.md"])


@pytest.mark.skipif(find_spec("material") is None, reason="pip install -r requirements-docs.txt")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^WARNING", done.stderr, flags=re.M)
    front = (tmp_path / "index.html").read_text()
    assert "a real critic" in front
    assert 'href="settings/' in front
    assert (tmp_path / "method.svg").is_file()


# --- commands and sentences -----------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """(page, arguments) of every call of the script in a bash block."""
    found = []
    for path in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(), flags=re.S | re.M):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "train_spo.py" in words and words[0] in ("accelerate", "python", "torchrun"):
                    found.append((name_of(path), words[words.index("train_spo.py") + 1 :]))
    return found


@pytest.mark.parametrize(("page", "arguments"), commands())
def test_a_command_is_made_of_real_flags_and_fits_together(page, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    parser = Parser((train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig))
    model, script, args = parser.parse(arguments, default_recipe=train_spo.QUICKSTART)
    train_spo._check_required(model, script)
    args.check_batches(num_processes=2, has_critic=args.wants_critic(args.wants_value_network))


def sentences_in_the_code() -> str:
    """Every text of the code, one a line, … where it fills something in."""
    texts = []
    for path in [*ROOT.glob("spo/**/*.py"), ROOT / "train_spo.py", ROOT / "app.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return re.sub("…+", "…", "\n".join(texts))


def test_the_sentences_of_the_troubleshooting_page_are_the_code_s():
    text = sentences_in_the_code()
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    sentences = re.findall(r"^\| `([^`]+)` \|", page, flags=re.M)
    assert len(sentences) > 40
    assert [s for s in sentences if s not in text] == []
