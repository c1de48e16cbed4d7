"""axe-core, from npm, finds no serious violation in any tab, light or dark, narrow or wide."""

import shutil
import subprocess
import tarfile

import pytest
from inspector_browser import REPOSITORY, browser_context, serve

from spo.inspector.shows import TABS

AXE = "axe-core@4.14.1"


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("no npm to fetch axe-core with")
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "pack", AXE], cwd=folder, check=True, capture_output=True, timeout=120)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        return files.extractfile("package/axe.min.js").read().decode()


@pytest.fixture(scope="module")
def samples():
    browser_context()
    return serve(REPOSITORY / "assets" / "sample_rollouts")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", TABS)
def test_no_serious_violation(axe, samples, tab, scheme):
    page = browser_context().new_page()
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{samples.address}#run=quickstart&tab={tab}&step=60")
    page.wait_for_timeout(6000)
    page.evaluate(axe)
    found = {}
    for width in (375, 1200, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(500)
        violations = page.evaluate("axe.run(document).then((result) => result.violations)")
        grave = [v for v in violations if v["impact"] in ("serious", "critical")]
        found[width] = [(v["id"], [node["html"][:120] for node in v["nodes"]]) for v in grave]
    page.close()
    assert not any(found.values()), found
