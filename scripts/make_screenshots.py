"""The real app, in a real browser -> the pictures in docs/, light and dark.

    python scripts/make_screenshots.py

Needs Debian's chromium and Playwright, as the browser tests do. Shows the bundled rollouts.
"""

import argparse
import sys
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from inspector_browser import Visit, browser_context, serve  # noqa: E402

from spo.inspector.folder import Folder  # noqa: E402
from spo.inspector.reading import read_step  # noqa: E402

DOCS = REPOSITORY / "docs"
DESKTOP = {"width": 1440, "height": 860}
PHONE = {"width": 375, "height": 812}
NARROW = {"width": 1200, "height": 800}
SAMPLES = REPOSITORY / "assets" / "sample_rollouts"
CHARTS = ".spo-chart:visible canvas"
READY = {
    "run": (".verdicts h3", ".sample .t", CHARTS),
    "read": (".badge.verified", ".card .t", ".detail dl"),
    "critic": (CHARTS, ".spo-table:visible [data-testid=cell-0-0]"),
    "compare": (".diff .t", ".modes .t"),
}
"""What has to be seen before a picture of a tab is taken."""
LANGUAGE = "run=smollm2&tab=read&colour=entropy&prompt=0&completion=0&token=20"


def story(folder: Folder) -> tuple[int, int, int, int]:
    """Step, prompt, completion and token of a wrong completion among right ones, at the segment
    with the lowest advantage; one whose critic read a reference, where there is one."""
    step, path = list(folder.steps("quickstart").paths.items())[-1]
    saved = read_step(path)
    rollouts = saved.rollouts
    size = rollouts.num_generations
    rewards = rollouts.completion_rewards.reshape(-1, size)
    read = [text is not None for text in rollouts.references or [False] * len(rollouts)]
    wrong = (rewards == rewards.min()) & (rewards < rewards.max(1, keepdims=True))
    wrong = wrong * (1 + np.reshape(read, rewards.shape))
    lone = wrong / np.maximum((wrong > 0).sum(1, keepdims=True), 1)
    prompt, completion = np.unravel_index(np.argmax(lone), lone.shape)
    token = int(np.argmin(saved.credit.token_advantages[prompt * size + completion]))
    return step, int(prompt), int(completion), token


def shots(folder: Folder) -> dict[str, tuple[str, dict, str]]:
    """Picture -> address, window and colours."""
    step, prompt, completion, token = story(folder)
    place = f"run=quickstart&step={step}&prompt={prompt}"
    reader = f"{place}&tab=read&completion={completion}&token={token}"
    right = int(not completion)
    return {
        "inspector-run": ("run=quickstart", DESKTOP, "light"),
        "inspector-run-dark": ("run=quickstart", DESKTOP, "dark"),
        "inspector-light": (reader, DESKTOP, "light"),
        "inspector-dark": (f"{reader}&p=0.3&lam=0.8", DESKTOP, "dark"),
        "inspector-language": (LANGUAGE, DESKTOP, "light"),
        "inspector-critic": (f"run=quickstart&tab=critic&step={step}", NARROW, "light"),
        "inspector-compare": (
            f"{place}&tab=compare&from={right}&to={completion}",
            DESKTOP,
            "light",
        ),
        "inspector-phone": ("run=quickstart", PHONE, "light"),
        "inspector-phone-reader": (reader, PHONE, "light"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="runs quickstart and smollm2")
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    server = serve(args.samples)
    for name, (fragment, size, scheme) in shots(Folder(args.samples)).items():
        browser_context().set_default_timeout(120_000)
        with Visit(server.address, fragment, scheme=scheme, **size) as visit:
            tab = dict(parse_qsl(fragment)).get("tab", "run")
            for selector in READY[tab]:
                visit.page.locator(selector).first.wait_for(state="visible")
            visit.page.wait_for_timeout(1500)  # the charts' last frame
            visit.page.screenshot(path=args.out / f"{name}.png")
            print(args.out / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
