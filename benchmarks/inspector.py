"""How fast the inspector is, in a real browser: slider to repaint, opening a group and a folder,
memory of the server. Writes benchmarks/results/inspector.json.

    python benchmarks/inspector.py

Needs Debian's chromium and Playwright (no browser download). The numbers are those of the machine
it runs on; goals stand beside them.
"""

import argparse
import importlib.metadata
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
from spo.rollouts import save_rollouts

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


def visit(server: Server, run: str) -> Visit:
    opened = Visit(server.address, f"run={run}")
    opened.page.wait_for_selector(".card .t")
    return opened


def slider_times(server: Server, run: str) -> list[float]:
    with visit(server, run) as opened:
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
            "slider_to_repaint_8x8192": summary(slider_times(server, "eight"), 150),
            "open_group_8x2048": summary(group_times(server), 1200),
            "open_folder_1000_steps_x_64": summary(folder_times(server), 2000),
            "server_memory": memory_growth(server, args.loads),
        }
    page = {name: importlib.metadata.version(name) for name in ("gradio", "pyarrow", "playwright")}
    path = write_result("inspector", {"page_versions": page, "seed": 0, **results})
    print(path.read_text())


if __name__ == "__main__":
    main()
