"""The real app, in a real browser -> the pictures in docs/, light and dark.

    python scripts/make_screenshots.py

Needs Debian's chromium and Playwright, as the browser tests do. Shows the bundled rollouts.
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from inspector_browser import Visit, serve  # noqa: E402

DOCS = REPOSITORY / "docs"
DESKTOP = {"width": 1440, "height": 860}
PHONE = {"width": 375, "height": 812}
STORY = "run=quickstart&step=60&prompt=12&completion=7&token=3"
SHOTS = {
    "inspector-light": (STORY, DESKTOP, "light"),
    "inspector-dark": (f"{STORY}&p=0.3&lam=0.8", DESKTOP, "dark"),
    "inspector-language": ("run=smollm2&colour=entropy&completion=0&token=20", DESKTOP, "light"),
    "inspector-modes": (f"{STORY}&tab=modes", DESKTOP, "light"),
    "inspector-step": ("run=quickstart&step=60&tab=step", DESKTOP, "light"),
    "inspector-training": ("run=smollm2&tab=training", DESKTOP, "dark"),
    "inspector-phone": (STORY, PHONE, "light"),
}


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    server = serve(REPOSITORY / "assets" / "sample_rollouts")
    for name, (fragment, size, scheme) in SHOTS.items():
        with Visit(server.address) as visit:
            visit.page.emulate_media(color_scheme=scheme)
            visit.page.set_viewport_size(size)
            visit.page.goto(f"{server.address}?#{fragment}")
            visit.page.wait_for_selector(".card .t", state="attached")
            visit.page.wait_for_timeout(1500)  # the check by Python, the aligned texts
            visit.page.screenshot(path=DOCS / f"{name}.png")
            print(DOCS / f"{name}.png")


if __name__ == "__main__":
    main()
