"""How fast the inspector is, in a real browser: first view, a step, a group, slider to repaint; a
run of 2,000 steps × 64 completions × 400 tokens searched and compared; memory of the server. Writes
benchmarks/results/inspector.json, with the ratio to the figures of the inspector that showed single
steps only.

    python benchmarks/inspector.py

Needs Debian's chromium and Playwright (no browser download). The numbers are those of the machine
it runs on; goals stand beside them.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, write_result

sys.path.insert(0, str(ROOT / "tests"))

from inspector_browser import Server, Visit, serve
from inspector_fixtures import make_rollouts, write_run

from spo.advantages import assign_credit
from spo.config import SPOConfig
from spo.inspector.compare import steps_with
from spo.inspector.folder import Folder
from spo.inspector.history import Histories
from spo.inspector.search import READERS, search_run
from spo.rollouts import save_rollouts
from spo.run.index import NAME, index_line

STEPS = 2000
EARLIER = {
    "slider_to_repaint_1x8192": 27.3,
    "slider_to_repaint_8x8192": 77.3,
    "open_group_8x2048": 479.1,
    "open_folder_1000_steps_x_64": 1208.3,
    "prompt_across_2000_steps": 96_000,
    "search_2000_steps": 147_000,
}
"""Medians in ms of the inspector that showed single steps (commit 0d7bd3fae852, a machine of 2
cores); the last two are one run each on the loaded machine."""

SLIDE = """
async () => {
  const slider = document.querySelector('[aria-label="entropy_percentile"]');
  const painted = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => done(performance.now());
    channel.port2.postMessage(null);
  }));
  const times = [];
  for (let i = 0; i < 30; i++) {
    const start = await painted();
    slider.value = 0.1 + 0.02 * i;
    slider.dispatchEvent(new Event("input"));
    times.push(await painted() - start);
    await new Promise((done) => setTimeout(done, 30));
  }
  return times.slice(5);
}
"""

NEXT_PROMPT = """
async () => {
  const place = () => document.querySelector(".prompt summary").textContent;
  const before = place();
  const start = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
  while (place() === before) await new Promise(requestAnimationFrame);
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}
"""

NEXT_STEP = """
async () => {
  const start = performance.now();
  const before = document.querySelector(".card");
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "[", bubbles: true }));
  while (document.querySelector(".card") === before) await new Promise(requestAnimationFrame);
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}
"""

LOAD_GROUPS = """
async (count) => {
  const press = (key) =>
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const place = () => document.querySelector(".prompt summary").textContent;
  for (let i = 0; i < count; i++) {
    const before = place();
    press(i % 2 ? "k" : "j");
    while (place() === before) await new Promise(requestAnimationFrame);
  }
}
"""


def write_runs(root: Path) -> None:
    write_run(root / "one", steps=(1,), prompts=1, generations=1, lengths=(8192, 8192))
    write_run(root / "eight", steps=(1,), prompts=1, generations=8, lengths=(8192, 8192))
    write_run(root / "groups", steps=(1,), prompts=8, generations=8, lengths=(2048, 2048))
    config = SPOConfig(num_generations=8)
    rollouts = make_rollouts(np.random.default_rng(0), 1, 8, 8, (64, 128))
    credit = assign_credit(rollouts, config)
    first = save_rollouts(rollouts, root / "long/rollouts/step-000001.parquet", credit, config)
    for step in range(2, 1001):
        (first.parent / f"step-{step:06d}.parquet").write_bytes(first.read_bytes())
    write_large(root / "large")


def write_large(folder: Path) -> None:
    """The run of 2,000 steps, with the index the trainer writes; the files are links to one."""
    config = SPOConfig(num_generations=8)
    rollouts = make_rollouts(np.random.default_rng(1), 1, 8, 8, (380, 420))
    credit = assign_credit(rollouts, config)
    first = save_rollouts(rollouts, folder / "rollouts/step-000001.parquet", credit, config)
    line = index_line(rollouts, credit)
    lines = [json.dumps({**line, "step": step}) for step in range(1, STEPS + 1)]
    (first.parent / NAME).write_text("\n".join(lines) + "\n")
    for step in range(2, STEPS + 1):
        os.link(first, first.parent / f"step-{step:06d}.parquet")


def visit(server: Server, run: str) -> Visit:
    opened = Visit(server.address, f"run={run}&tab=read&prompt=0")
    opened.page.wait_for_selector(".card .t")
    return opened


def slider_times(server: Server, run: str) -> list[float]:
    with visit(server, run) as opened:
        opened.page.click(".controls summary")
        opened.page.fill("#spo-lam", "0.5")
        opened.page.wait_for_selector(".check.verified")
        return opened.ask(SLIDE)


def group_times(server: Server) -> list[float]:
    with visit(server, "groups") as opened:
        return [opened.ask(NEXT_PROMPT) for _ in range(7)]


def folder_times(server: Server) -> list[float]:
    """From the navigation to the first token of the newest of 1,000 steps."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        with visit(server, "long"):
            times.append(1000 * (time.perf_counter() - started))
    return times


def first_views(server: Server) -> list[float]:
    """From the navigation to the verdicts and the charts of the 2,000 steps."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        with Visit(server.address, "run=large") as opened:
            opened.page.wait_for_selector(".verdicts")
            opened.page.wait_for_selector(".spo-chart canvas, .spo-chart svg.marks")
            times.append(1000 * (time.perf_counter() - started))
    return times


def step_times(server: Server) -> list[float]:
    """From the key to the painted completions of the step before."""
    with visit(server, "long") as opened:
        return [opened.ask(NEXT_STEP) for _ in range(9)]


def prompt_times(root: Path) -> list[float]:
    """Every step that holds a prompt, in a process that has read nothing yet."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        found = steps_with(Histories(Folder(root)).get("large"), 3)
        times.append(1000 * (time.perf_counter() - started))
        assert len(found) == STEPS
    return times


def search_times(root: Path) -> dict:
    """A whole run searched by number and by text: until the first matches, and until the end."""
    paths = Folder(root).steps("large").paths
    results = {}
    for name, query in {"by_number": {"advantage_max": -1.5}, "by_text": {"text": "frac"}}.items():
        started = time.perf_counter()
        answers = search_run(paths, query)
        first = next(answers)
        until_first = 1000 * (time.perf_counter() - started)
        for last in answers:
            first = last
        results[name] = {
            "first_ms": round(until_first, 1),
            "all_ms": round(1000 * (time.perf_counter() - started), 1),
            "segments": sum(first.counts.values()),
            "goal_first_ms": 1000,
            "goal_all_ms": 5000,
        }
    return results


def search_seen(server: Server) -> dict:
    """The same by text as a person sees it: from the button to the first rows and to the last."""
    with Visit(server.address, "run=large&tab=search") as opened:
        page = opened.page
        page.get_by_label("Regular expression in the segment's text").fill("frac")
        started = time.perf_counter()
        page.click("text=Find segments")
        page.wait_for_selector("#spo-tab-search [data-testid=cell-0-0]")
        first = 1000 * (time.perf_counter() - started)
        done = f"text=segments in {STEPS} of {STEPS} steps"
        page.wait_for_selector(done, timeout=120_000)
        whole = 1000 * (time.perf_counter() - started)
    goals = {"goal_first_ms": 1000, "goal_all_ms": 5000}
    return {"first_ms": round(first, 1), "all_ms": round(whole, 1), **goals}


def ratios(results: dict) -> dict[str, float]:
    """Median now over the earlier one."""
    now = {name: result.get("median_ms") for name, result in results.items()}
    now["search_2000_steps"] = results["search_2000_steps"]["by_text"]["all_ms"]
    return {name: round(now[name] / before, 4) for name, before in EARLIER.items()}


def memory_growth(server: Server, loads: int) -> dict:
    """Resident memory of the server after a tenth of the group loads and after all of them."""
    with visit(server, "groups") as opened:
        opened.ask(LOAD_GROUPS, loads // 10)
        early = server.memory()
        opened.ask(LOAD_GROUPS, loads - loads // 10)
        return {
            "loads": loads,
            "early_mib": round(early / 2**20, 1),
            "late_mib": round(server.memory() / 2**20, 1),
        }


def summary(times: list[float], goal: float) -> dict:
    return {
        "median_ms": round(statistics.median(times), 1),
        "mean_ms": round(statistics.mean(times), 1),
        "std_ms": round(statistics.stdev(times), 1),
        "max_ms": round(max(times), 1),
        "samples": len(times),
        "goal_ms": goal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=500, help="group loads of the memory test")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_runs(root)
        server = serve(root)
        results = {
            "slider_to_repaint_1x8192": summary(slider_times(server, "one"), 60),
            "slider_to_repaint_8x8192": summary(slider_times(server, "eight"), 60),
            "open_group_8x2048": summary(group_times(server), 1200),
            "first_view_2000_steps": summary(first_views(server), 1500),
            "change_step_64": summary(step_times(server), 300),
            "prompt_across_2000_steps": summary(prompt_times(root), 1000),
            "search_2000_steps": search_times(root) | {"in_browser": search_seen(server)},
            "open_folder_1000_steps_x_64": summary(folder_times(server), 2000),
            "server_memory": memory_growth(server, args.loads),
        }
    page = {name: importlib.metadata.version(name) for name in ("gradio", "pyarrow", "playwright")}
    more = {"page_versions": page, "seed": 0, "search_threads": READERS}
    more |= {"earlier_ms": EARLIER, "ratio_to_earlier": ratios(results)}
    path = write_result("inspector", {**more, **results})
    print(path.read_text())


if __name__ == "__main__":
    main()
