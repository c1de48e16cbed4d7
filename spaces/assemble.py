"""The repository -> two folders that Hugging Face Spaces can serve as they are (`make space`).

    build/space          Gradio Space: the app, the modules it imports, sample rollouts
    build/space-static   static Space: one prompt group as a self-contained HTML file

Upload either with `hf upload NAME build/space . --repo-type space`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from spo.inspector.export import export_group  # noqa: E402
from spo.inspector.folder import Folder  # noqa: E402
from spo.inspector.history import Histories  # noqa: E402
from spo.inspector.reading import read_step  # noqa: E402

IMPORTED = """
import sys, app
for module in list(sys.modules.values()):
    if getattr(module, "__name__", "").split(".")[0] == "spo":
        print(module.__file__)
"""
SHOWN = ("quickstart", 12)
"""Run and prompt group of the static Space, at the run's last saved step."""


def assemble_app(target: Path) -> None:
    """app.py, the part of `spo` without torch, the samples, front matter and requirements."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "spo").mkdir(parents=True)
    for path in imported_modules():
        copy = target / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.rmtree(target / "spo" / "inspector")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "spo" / "inspector", target / "spo" / "inspector", ignore=ignore)
    shutil.copytree(REPOSITORY / "assets" / "sample_rollouts", target / "assets/sample_rollouts")
    shutil.copy(REPOSITORY / "app.py", target)
    for name in ("README.md", "requirements.txt"):
        shutil.copy(REPOSITORY / "spaces" / "inspector" / name, target)


def imported_modules() -> list[Path]:
    """The files of `spo` that the app imports: no torch is needed for them."""
    command = [sys.executable, "-c", IMPORTED]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return [Path(line) for line in output.stdout.splitlines()]


def assemble_static(target: Path) -> None:
    """index.html and front matter."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    run, group = SHOWN
    folder = Folder(REPOSITORY / "assets" / "sample_rollouts")
    number, path = list(folder.steps(run).paths.items())[-1]
    place = {"run": run, "step": number, "group": group}
    history = Histories(folder).get(run)
    view = f"run={run}&prompt={group}&completion=7&token=3"
    html = export_group(read_step(path), group, None, place, view, history)
    (target / "index.html").write_text(html, encoding="utf-8")
    shutil.copy(REPOSITORY / "spaces" / "static" / "README.md", target)


def main(build: Path = REPOSITORY / "build") -> None:
    assemble_app(build / "space")
    assemble_static(build / "space-static")
    print(f"{build / 'space'}\n{build / 'space-static'}")


if __name__ == "__main__":
    main()
