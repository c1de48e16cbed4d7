"""One browser and one server for all browser tests; skips where there is no Chromium."""

import atexit
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import inspector_fixtures as fixtures
import numpy as np
import pytest

from spo.inspector.reading import read_step

REPOSITORY = Path(__file__).parent.parent
WIDTHS = (375, 820, 1024, 1200, 1440)
CACHE = tempfile.TemporaryDirectory(prefix="spo-inspector-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name  # of the servers that tests start
STEPS = (1, 2, 3, 5)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browser_context():
    """A Chromium with a fresh profile, until `close_browser`."""
    context, _ = _started()
    if context is None:
        pytest.skip("no browser: apt install chromium, or playwright install chromium")
    return context


def close_browser():
    """Else its event loop counts as running for whatever else this process does."""
    if _started.cache_info().currsize:
        _, close = _started()
        _started.cache_clear()
        close()


@functools.cache
def _started():
    """The Chromium, None where none is found, and what ends it."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright to drive Chromium"
    )
    driver = playwright.sync_playwright().start()
    found = [*filter(None, map(shutil.which, BROWSERS)), driver.chromium.executable_path]
    if not os.path.exists(found[0]):
        return None, driver.stop
    profile = tempfile.mkdtemp(prefix="spo-chromium-")
    context = driver.chromium.launch_persistent_context(
        profile, executable_path=found[0], args=FLAGS, viewport={"width": 1400, "height": 900}
    )
    context.set_default_timeout(30_000)

    def close():
        context.close()
        driver.stop()
        shutil.rmtree(profile, ignore_errors=True)

    return context, close


atexit.register(close_browser)


sys.path.insert(0, str(REPOSITORY / "spaces"))
import assemble  # noqa: E402

PROGRAM = """
import sys, app, spo
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
print(spo.__file__, "heavy modules:", heavy, flush=True)
app.main(sys.argv[1:])
"""


@dataclass
class Server:
    address: str
    folder: Path
    first_line: str
    process: subprocess.Popen

    def memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def serve(
    root: Path, *arguments: str, python: str = sys.executable, cwd: Path = REPOSITORY
) -> Server:
    """Start the app on a folder in its own process, as a person would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-c", PROGRAM, str(root), "--port", str(port), *arguments]
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    atexit.register(process.kill)
    lines = [process.stdout.readline()]
    while "Running on" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], f"the app ended: {lines}"
    return Server(f"http://127.0.0.1:{port}/", cwd, lines[0], process)


@functools.cache
def shared_server() -> tuple[Path, Server]:
    """The folder and the server of all browser tests: one start of Gradio for the whole suite,
    from the assembled Space, so that what is uploaded is what is tested."""
    browser_context()  # skips before a server is started
    root = Path(tempfile.mkdtemp(prefix="spo-inspector-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    fixtures.write_run(root / "alpha", steps=STEPS)
    fixtures.write_run(root / "nocritic", steps=(1,), critic=False)
    fixtures.write_payloads(root)
    fixtures.write_forks(root)
    fixtures.write_trl(root)
    fixtures.write_odd(root)
    fixtures.write_conversations(root / "chat")
    fixtures.write_split(root)
    fixtures.write_known(root)
    fixtures.write_run(root / "long", steps=range(1, 61))
    space = Path(tempfile.mkdtemp(prefix="spo-space-")) / "space"
    atexit.register(shutil.rmtree, space.parent, ignore_errors=True)
    assemble.assemble_app(space)
    return root, serve(root, cwd=space)


class Visit:
    """An open page, with everything it said and asked for."""

    def __init__(self, address: str, fragment: str = "", scheme: str = "light", **size):
        self.page = browser_context().new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.emulate_media(color_scheme=scheme)
        if size:
            self.page.set_viewport_size(size)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._listen)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{address}#{fragment}")

    def _listen(self, message):
        if message.type == "error":
            self.problems.append(message.text)

    def __enter__(self):
        parts = (".card", ".note", ".verdicts", ".spo-table", ".diff", ".primary", "svg text")
        self.page.wait_for_selector(", ".join(f"{part}:visible" for part in parts))
        return self

    def __exit__(self, *_):
        self.page.close()

    def text(self, selector: str) -> str:
        return self.page.text_content(selector)

    def ask(self, script: str, *values):
        return self.page.evaluate(script, *values)

    def wait(self, condition: str):
        self.page.wait_for_function(condition)


def saved(root, step=2):
    return read_step(root / "alpha" / "rollouts" / f"step-{step:06d}.parquet")


def first_token_is_seen(page) -> bool:
    """Whether the first token of the first card is drawn, inside the window's width, and nothing
    lies over it once it is scrolled to."""
    token = page.locator(".card >> nth=0 >> .t:not(.shared) >> nth=0")
    token.evaluate("(token) => token.scrollIntoView({ block: 'center', inline: 'center' })")
    return token.is_visible() and token.evaluate(
        """(token) => {
          const { left, top, width, height } = token.getBoundingClientRect();
          const above = document.elementFromPoint(left + width / 2, top + height / 2);
          return width > 2 && height > 8 && left >= 0 && left + width <= innerWidth
            && (token === above || token.contains(above));
        }"""
    )


CARD = "document.querySelectorAll('.card')"


def shown_ids(opened, card=0):
    """Segment ids as drawn: a cut or split token starts one."""
    names = opened.ask(f"[...{CARD}[{card}].querySelectorAll('.t')].map((t) => t.className)")
    return np.cumsum([bool(re.search(r"\b(cut|split)\b", name)) for name in names])
