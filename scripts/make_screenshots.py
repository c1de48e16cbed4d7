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
STORY = "run=quickstart&tab=read&step=60&prompt=12&completion=7&token=3"
SHOTS = {
    "inspector-run": ("run=quickstart", DESKTOP, "light"),
    "inspector-run-dark": ("run=quickstart", DESKTOP, "dark"),
    "inspector-light": (STORY, DESKTOP, "light"),
    "inspector-dark": (f"{STORY}&p=0.3&lam=0.8", DESKTOP, "dark"),
    "inspector-language": (
        "run=smollm2&tab=read&colour=entropy&prompt=0&completion=0&token=20",
        DESKTOP,
        "light",
    ),
    "inspector-critic": ("run=quickstart&tab=critic&step=60", DESKTOP, "light"),
    "inspector-compare": (
        "run=quickstart&tab=compare&step=60&prompt=12&from=0&to=7",
        DESKTOP,
        "light",
    ),
    "inspector-phone": ("run=quickstart", PHONE, "light"),
    "inspector-phone-reader": (STORY, PHONE, "light"),
}


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    server = serve(REPOSITORY / "assets" / "sample_rollouts")
    for name, (fragment, size, scheme) in SHOTS.items():
        with Visit(server.address, fragment, scheme=scheme, **size) as visit:
            visit.page.wait_for_timeout(6000)  # charts, the check by Python
            visit.page.screenshot(path=DOCS / f"{name}.png")
            print(DOCS / f"{name}.png")


if __name__ == "__main__":
    main()
