"""The repository -> two folders that Hugging Face Spaces can serve as they are (`make space`).

    build/space          Gradio Space: the app, the modules it imports, sample rollouts
    build/space-static   static Space: one prompt group as a self-contained HTML file

Upload either with `hf upload NAME build/space . --repo-type space`.
"""

import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from spo.inspector.export import export_group  # noqa: E402
from spo.inspector.folder import Folder  # noqa: E402
from spo.inspector.reading import read_step  # noqa: E402

MODULES = ("__init__", "config", "options", "segments", "advantages", "rollouts")
SHOWN = ("quickstart", 12)
"""Run and prompt group of the static Space, at the run's last saved step."""


def assemble_app(target: Path) -> None:
    """app.py, the part of `spo` without torch, the samples, front matter and requirements."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "spo").mkdir(parents=True)
    for name in MODULES:
        shutil.copy(REPOSITORY / "spo" / f"{name}.py", target / "spo")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "spo" / "inspector", target / "spo" / "inspector", ignore=ignore)
    shutil.copytree(REPOSITORY / "assets" / "sample_rollouts", target / "assets/sample_rollouts")
    shutil.copy(REPOSITORY / "app.py", target)
    for name in ("README.md", "requirements.txt"):
        shutil.copy(REPOSITORY / "spaces" / "inspector" / name, target)


def assemble_static(target: Path) -> None:
    """index.html and front matter."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    run, group = SHOWN
    folder = Folder(REPOSITORY / "assets" / "sample_rollouts")
    number, path = list(folder.steps(run).paths.items())[-1]
    place = {"run": run, "step": number, "group": group}
    html = export_group(
        read_step(path), group, None, place, f"run={run}&prompt={group}&completion=7&token=3"
    )
    (target / "index.html").write_text(html, encoding="utf-8")
    shutil.copy(REPOSITORY / "spaces" / "static" / "README.md", target)


def main(build: Path = REPOSITORY / "build") -> None:
    assemble_app(build / "space")
    assemble_static(build / "space-static")
    print(f"{build / 'space'}\n{build / 'space-static'}")


if __name__ == "__main__":
    main()
