"""MkDocs hook: README.md becomes the front page, benchmarks/README.md a page beside the others.

The files stay where GitHub shows them; only their links are turned to where the site has them.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PICTURE = "learning.png"


def on_files(files, config):
    """Add what lies outside docs/."""
    front = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    front = re.sub(r"\]\(docs/", "](", front)
    measured = ROOT.joinpath("benchmarks", "README.md").read_text(encoding="utf-8")
    measured = measured.replace("](../README.md", "](index.md").replace("](../docs/", "](")
    measured = measured.replace(f"](results/{PICTURE}", f"]({PICTURE}")
    files.append(File.generated(config, "index.md", content=front))
    files.append(File.generated(config, "benchmarks.md", content=measured))
    picture = ROOT / "benchmarks" / "results" / PICTURE
    files.append(File.generated(config, PICTURE, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of docs/ lead to the pages added above."""
    markdown = markdown.replace("](../benchmarks/README.md", "](benchmarks.md")
    markdown = markdown.replace(f"](../benchmarks/results/{PICTURE}", f"]({PICTURE}")
    return markdown.replace("](docs/", "](")  # inspector.md is shown from the repository's root
