"""`make space` and the terminal: folders that start elsewhere, and sentences for what cannot."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from inspector_browser import (
    REPOSITORY,
    WIDTHS,
    Visit,
    assemble,
    browser_context,
    first_token_is_seen,
    serve,
    shared_server,
)

SAMPLES = REPOSITORY / "assets" / "sample_rollouts"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    assemble.assemble_app(folder / "space")
    assemble.assemble_static(folder / "space-static")
    return folder


def test_the_space_is_complete_and_small(build):
    front = (build / "space" / "README.md").read_text().split("---")[1]
    pinned = re.search(r"sdk_version: (\S+)", front)[1]
    requirements = (build / "space" / "requirements.txt").read_text()
    assert f"gradio=={pinned}" in requirements
    assert f"gradio=={pinned}" in (REPOSITORY / "requirements.txt").read_text()
    assert "torch" not in requirements
    samples = sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file())
    assert samples <= 5 << 20


def test_the_browser_tests_ran_on_the_assembled_space():
    _, server = shared_server()
    assert str(server.folder) in server.first_line
    assert server.folder != REPOSITORY


def test_the_static_space_shows_a_prompt_group(build):
    with Visit((build / "space-static" / "index.html").as_uri()) as visit:
        for width in WIDTHS:
            visit.page.set_viewport_size({"width": width, "height": 800})
            visit.page.wait_for_selector(".card .t")
            assert first_token_is_seen(visit.page)
            assert visit.ask("document.documentElement.scrollWidth") <= width
        assert "verified" in visit.text(".badge")
        visit.page.click(".controls summary")
        visit.page.fill("#spo-entropy_percentile", "0.4")
        visit.page.wait_for_selector(".t.split")
        assert visit.problems == []


def test_the_samples_are_sound():
    """Every bundled step is readable and its credit is what `assign_credit` says."""
    from spo.inspector.folder import Folder
    from spo.inspector.reading import read_step
    from spo.inspector.whatif import check_saved

    folder = Folder(SAMPLES)
    for run in folder.runs():
        for path in folder.steps(run).paths.values():
            assert check_saved(read_step(path))["state"] == "verified", path


@pytest.mark.slow
def test_the_space_runs_in_an_empty_environment(build, tmp_path):
    """Only its own requirements are installed; needs a package index."""
    browser_context()
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "-r", str(build / "space/requirements.txt")]
    subprocess.run(install, check=True)
    server = serve(build / "space/assets/sample_rollouts", python=python, cwd=build / "space")
    with Visit(server.address, "run=quickstart&tab=read") as visit:
        visit.page.wait_for_selector(".card .t")
        assert "verified" in visit.text(".badge")


@pytest.fixture(scope="module")
def app():
    return pytest.importorskip("app", reason="gradio is not installed")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["/nowhere/at/all"], "/nowhere/at/all does not exist."),
        ([str(Path(__file__).parent)], "holds no rollout files"),
        ([__file__], "is no Parquet file"),
    ],
)
def test_a_wrong_folder_ends_with_a_sentence(app, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        app.main(arguments)


def test_a_port_in_use_ends_with_a_sentence(app):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=f"Port {port} is in use"):
            app.main([str(SAMPLES), "--port", str(port)])


def test_other_machines_are_let_in_with_a_token_only(app):
    with pytest.raises(SystemExit, match="give --token SECRET as well"):
        app.main([str(SAMPLES), "--host", "0.0.0.0"])


def test_mcp_without_its_package_ends_with_a_sentence(app, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(SystemExit, match="needs the package mcp"):
        app.main([str(SAMPLES), "--mcp"])


def test_nothing_is_public_unless_asked(app):
    args = app.parse([])
    assert (args.host, args.share, args.monitoring, args.mcp) == ("127.0.0.1", False, False, False)


def test_agents_get_three_typed_functions():
    from spo.inspector.agents import Agents
    from spo.inspector.folder import Folder

    list_steps, get_group, find_segments = Agents(Folder(SAMPLES)).tools
    steps = list_steps("quickstart")["steps"]
    group = get_group("quickstart", steps[-1], 0)
    assert group["credit_check"]["state"] == "verified"
    assert len(group["completions"]) == 8
    found = find_segments("quickstart", advantage_max=-1.0)
    assert all(match["advantage"] <= -1 for match in found["matches"])
    assert get_group("../elsewhere", 1, 0) == {"error": "There is no run '../elsewhere' here."}
    assert json.loads(json.dumps([group, found])) == [group, found]  # keys are text
    for function in (list_steps, get_group, find_segments):
        assert "Args:" in function.__doc__
