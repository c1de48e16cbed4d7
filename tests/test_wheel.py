"""The wheel: what is in it, and that it trains and shows a run without the repository."""

import email
import os
import re
import shutil
import socket
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import inspector_browser as browser
import numpy as np
import pytest

import spo
from spo.rollouts import load_rollouts

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = ("spo", "recipes", "assets", "app.py", "train_spo.py", "setup.py", "pyproject.toml")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no old build folder shows through; needs setuptools >= 77."""
    source = tmp_path_factory.mktemp("source")
    for name in (*SOURCES, "README.md", "LICENSE", "MANIFEST.in"):
        if (REPOSITORY / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, source / name, ignore=ignore)
        else:
            shutil.copy(REPOSITORY / name, source)
    dist = source / "dist"
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(dist), "."]
    subprocess.run([*PIP, *build], cwd=source, check=True)
    (path,) = dist.iterdir()
    return path


def test_the_wheel_holds_what_the_repository_runs_on(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"spo/bundled/app.py", "spo/bundled/train_spo.py"}
    for folder, inside in (("spo", "spo"), ("recipes", "spo/bundled/recipes")):
        files = [p for p in (REPOSITORY / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
        expected |= {f"{inside}/{p.relative_to(REPOSITORY / folder).as_posix()}" for p in files}
    assets = [p for p in (REPOSITORY / "assets").rglob("*") if p.is_file()]
    expected |= {f"spo/bundled/{p.relative_to(REPOSITORY).as_posix()}" for p in assets}
    info = {name for name in names if name.startswith("spo-") and ".dist-info/" in name}
    assert names - info == expected
    assert any(name.endswith("licenses/LICENSE") for name in info)
    assert any(name.endswith("licenses/spo/inspector/static/uplot/LICENSE") for name in info)


def test_its_metadata_is_that_of_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Version"] == spo.__version__
    assert f"version: {spo.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT"
    assert {"inspector", "bnb", "vllm", "bench"} <= set(metadata.get_all("Provides-Extra"))


def requirement_lines(path: Path) -> dict[str, str]:
    """Package → version of a file of exact pins."""
    lines = re.findall(r"^([\w-]+)==(\S+)", path.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in lines}


@pytest.mark.parametrize("file", ["requirements.txt", ".github/constraints-lowest.txt"])
def test_the_exact_versions_lie_within_the_ranges(wheel, file):
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    ranges = {
        r.name.lower().replace("_", "-"): r
        for r in map(Requirement, metadata.get_all("Requires-Dist"))
    }
    exact = requirement_lines(REPOSITORY / file)
    assert len(exact) >= 15
    outside = [n for n, v in exact.items() if n in ranges and not ranges[n].specifier.contains(v)]
    assert not outside
    assert set(exact) <= set(ranges)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel; its dependencies are those of the running tests."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(outer) + "\n")
    install = ["--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*PIP, *install, str(wheel)], check=True)
    return folder


def call(environment: Path, command: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """Run an installed command as a person outside the repository would, without hubs."""
    variables = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=cwd,
        env=variables | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


SMALL = ["--max_steps=2", "--eval_size=0", "--report_to=none", "--output_dir=run"]


@pytest.fixture(scope="module")
def trained(environment, tmp_path_factory) -> tuple[Path, str]:
    """The folder in which `spo-train` was called, and what it printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return folder, call(environment, ["spo-train", *SMALL], folder).stdout


def assert_trained(folder: Path, printed: str) -> None:
    assert "2/2" in printed
    assert (folder / "run" / "model.safetensors").is_file()
    recorded = load_rollouts(folder / "run" / "rollouts" / "step-000002.parquet")
    assert np.isfinite(recorded.credit.token_advantages).any()
    assert str(REPOSITORY) not in printed + (folder / "run" / "spo_config.json").read_text()


def test_an_installed_wheel_trains_without_the_repository(trained):
    assert_trained(*trained)


def test_it_trains_under_accelerate_launch(environment, tmp_path):
    launch = ["python", "-m", "accelerate.commands.launch", "--cpu", "-m", "spo.train"]
    assert_trained(tmp_path, call(environment, [*launch, *SMALL], tmp_path).stdout)


def test_an_installed_wheel_reads_its_own_recipes(environment, tmp_path):
    flags = ["--config=recipes/gsm8k.yaml", "--model_name_or_path=assets/quickstart"]
    done = call(
        environment, ["spo-train", *flags, "--use_peft=false", "--estimate_memory"], tmp_path
    )
    assert "GiB" in done.stdout


def test_the_installed_inspector_shows_the_run_in_a_browser(environment, trained):
    context, folder = browser.browser_context(), trained[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [environment / "bin" / "spo-inspect", "run", "--port", str(port)]
    app = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert any("Running on" in line for line in app.stdout), "the app ended"
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/#step=2")
        path = folder / "run" / "rollouts" / "step-000002.parquet"
        text = load_rollouts(path).rollouts.completions[0].strip().splitlines()[0]
        page.wait_for_function("text => document.body.innerText.includes(text)", arg=text)
        page.close()
    finally:
        app.kill()


@pytest.mark.slow
def test_an_empty_environment_gets_all_it_needs(wheel, tmp_path):
    """With the dependencies pip chooses from the ranges: minutes, and the package index."""
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{wheel}[inspector]"], check=True)
    done = call(tmp_path / "env", ["spo-train", *SMALL], tmp_path)
    assert "2/2" in done.stdout
    assert "--port" in call(tmp_path / "env", ["spo-inspect", "--help"], tmp_path).stdout


def test_without_gradio_one_sentence_says_what_to_install(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('gradio', name='gradio')\n")
    done = subprocess.run(
        [sys.executable, "-m", "spo.inspector"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == 'The inspector needs Gradio: pip install "spo[inspector]".\n'
