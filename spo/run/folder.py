"""A run's output folder: whose it is, what is in it, who writes to it.

`spo_run.json` holds the run's id and the files of the saved model: by it another run's checkpoints
are told from its own, and a person's files from what it wrote.
"""

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from spo.config import SPOConfig
from spo.errors import RunFolderError
from spo.rollouts import Credit, Rollouts, save_rollouts, select_rows
from spo.run import checkpoint
from spo.run.checkpoint import checkpoints_in, flush, free_name, read_state

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG_FILE, METRICS_FILE, RUN_FILE = "spo_config.json", "metrics.jsonl", "spo_run.json"
RUN_FILES = (CONFIG_FILE, METRICS_FILE, "rollouts")
"""What shows that a folder holds a run."""

WRITTEN = (
    r"rollouts/(eval-)?step-\d{6,}\.parquet|rollouts/index\.jsonl",
    r"non-finite-step-\d{6,}-process-\d+\.parquet",
)
"""What a run writes beside its model, as regular expressions."""

VLLM_FOLDER = ".vllm-adapters"
"""Where a vLLM server finds the policy's adapter."""

LOCK_SECONDS = 60
"""How long to wait for a trainer that is being stopped."""

SECONDS_TO_SEE = 30
"""How long a file system may take to show one machine what another has written."""


# --- choosing and preparing it ---------------------------------------------------------------


@contextmanager
def prepared_output_dir(args: SPOConfig, accelerator: Accelerator) -> Iterator[Path]:
    """The run's folder, the same on every process; refuses one that holds another run. Where what
    follows fails, a folder that was made for it is taken away."""
    answer: list[Any] = [None, None, False]
    if accelerator.is_main_process:
        try:
            answer[0], answer[2] = _prepare(args)
        except OSError as error:
            answer[1] = f"output_dir cannot be written to: {error.strerror}: {error.filename}."
        except ValueError as error:
            answer[1] = str(error)
    path, refusal, is_new = broadcast_object_list(answer)
    if refusal:
        raise RunFolderError(refusal)
    try:
        _check_shared(path, accelerator)
        yield path
    except BaseException:
        if is_new and accelerator.is_main_process and os.listdir(path) == [RUN_FILE]:
            shutil.rmtree(path)
        raise


def _check_shared(path: Path, accelerator: Accelerator) -> None:
    """All machines see the folder."""
    if accelerator.num_processes == 1:
        return
    run_id = broadcast_object_list([read_run(path).get("run_id")])[0]
    if not all(gather_object([_sees(path, run_id)])):
        raise RunFolderError(
            f"{path} of the first machine is not there on another one: each writes its part of "
            "a checkpoint, so name an output_dir on a file system that they share."
        )


def _sees(path: Path, run_id: str) -> bool:
    """The run that another process has just begun; a file system over a network takes its time."""
    until = time.monotonic() + SECONDS_TO_SEE
    while not (seen := read_run(path).get("run_id") == run_id) and time.monotonic() < until:
        time.sleep(0.2)
    return seen


def _prepare(args: SPOConfig) -> tuple[Path, bool]:
    """The folder, and whether it is new."""
    output_dir = chosen_dir(args)
    if output_dir.is_file():
        raise RunFolderError(f"output_dir {output_dir} is a file; name a folder.")
    resume = args.resume_from_checkpoint
    if args.overwrite_output_dir and not resume:
        _remove_run(output_dir)
    elif not resume and not checkpoints_in(output_dir):
        refuse_another_run(output_dir)  # with a checkpoint, train() may yet be told to resume
    is_new = not output_dir.exists()
    output_dir.mkdir(parents=True, exist_ok=True)
    if not read_run(output_dir).get("run_id"):
        write_run(output_dir, run_id=_found_id(output_dir, bool(resume)) or uuid.uuid4().hex)
    return output_dir, is_new


def _found_id(output_dir: Path, resume: bool) -> str | None:
    """That of the newest checkpoint, where a run's folder has lost the file that says it."""
    found = checkpoints_in(output_dir)
    if found and (resume or any((output_dir / name).exists() for name in RUN_FILES)):
        return read_state(found[-1])["run_id"]
    return None


def chosen_dir(args: SPOConfig) -> Path:
    """`output_dir`; without it the folder of the run to go on with, or a new one."""
    if args.output_dir:
        return Path(args.output_dir)
    wanted = args.resume_from_checkpoint
    if wanted in ("latest", "auto"):
        if (newest := newest_run()) is not None:
            return newest
    elif wanted and read_state(Path(wanted)) is not None:
        return Path(wanted).parent
    return Path(f"runs/{args.run_name or 'spo'}-{time.strftime('%Y%m%d-%H%M%S')}")


def newest_run(root: Path = Path("runs")) -> Path | None:
    """The run with the newest checkpoint."""
    newest = {folder: found[-1] for folder in root.glob("*") if (found := checkpoints_in(folder))}
    return max(newest, key=lambda folder: newest[folder].stat().st_mtime, default=None)


def refuse_another_run(output_dir: Path) -> None:
    used = [name for name in RUN_FILES if (output_dir / name).exists()]
    if used:
        raise RunFolderError(
            f"output_dir {output_dir} holds another run ({', '.join(used)}); choose another "
            "folder, --resume_from_checkpoint latest, or --overwrite_output_dir."
        )


def begin_anew(output_dir: Path) -> None:
    """Start again where an earlier start came to no checkpoint; its metrics are put aside.

    Raises:
        RunFolderError: it came to its end, and its model would be written over.
    """
    if read_run(output_dir).get("finished"):
        raise RunFolderError(
            f"output_dir {output_dir} holds a finished run and no checkpoint to go on from; choose "
            "another folder, or --overwrite_output_dir without --resume_from_checkpoint."
        )
    metrics = output_dir / METRICS_FILE
    if metrics.exists():
        metrics.rename(free_name(metrics))


def _remove_run(output_dir: Path) -> None:
    """Delete what a run of SPO wrote, and nothing else."""
    run = read_run(output_dir)
    for path in checkpoints_in(output_dir, run.get("run_id")):
        checkpoint.delete(path)
    remove_unfinished(output_dir)
    names = [CONFIG_FILE, METRICS_FILE, RUN_FILE, *run.get("files", [])]
    for path in (*output_dir.glob("*"), *output_dir.glob("rollouts/*")):
        name = path.relative_to(output_dir).as_posix()
        names += [name for pattern in WRITTEN if re.fullmatch(pattern, name)]
    for name in names:
        (output_dir / name).unlink(missing_ok=True)
    for folder in ("rollouts", "critic"):
        if (output_dir / folder).is_dir() and not any((output_dir / folder).iterdir()):
            (output_dir / folder).rmdir()


def remove_unfinished(output_dir: Path) -> None:
    """What a killed run was writing, and the adapters it had sent to vLLM."""
    checkpoint.remove_unfinished(output_dir)
    for name in (".model.tmp", ".dry-save.tmp", VLLM_FOLDER):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    for path in output_dir.glob("rollouts/.*.tmp"):
        if re.fullmatch(r"\.(eval-)?step-\d+\.parquet\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


# --- its two small files ---------------------------------------------------------------------


def read_run(output_dir: Path) -> dict[str, Any]:
    """What `spo_run.json` says; empty where there is none."""
    try:
        run = json.loads((output_dir / RUN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def write_run(output_dir: Path, **changed: Any) -> None:
    """Change entries of `spo_run.json`: run_id, files of the model, finished."""
    replace_text(output_dir / RUN_FILE, json.dumps(read_run(output_dir) | changed, indent=2))


def note_files(output_dir: Path, names: list[str]) -> None:
    """Files of this run's own, which overwriting it deletes."""
    write_run(output_dir, files=sorted({*names, *read_run(output_dir).get("files", [])}))


def write_config(output_dir: Path, args: SPOConfig) -> None:
    """The resolved configuration, beside what it makes."""
    replace_text(output_dir / CONFIG_FILE, args.to_json_string() + "\n")


def replace_text(path: Path, text: str) -> None:
    """The old file or the whole new one is there, whatever happens meanwhile."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- who writes to it ------------------------------------------------------------------------


@contextmanager
def locked(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """One trainer at a time; the operating system frees the folder of one that dies.

    Raises:
        RunFolderError: another one did not leave it for a minute.
    """
    handle = _lock(output_dir) if accelerator.is_main_process and fcntl is not None else None
    busy = handle == -1
    if broadcast_object_list([busy])[0]:
        raise RunFolderError(
            f"Another trainer is writing to {output_dir}; stop it, or choose another output_dir."
        )
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(output_dir: Path) -> int | None:
    """A handle of the locked folder, −1 where another one has it, None where there are no locks."""
    handle = os.open(output_dir, os.O_RDONLY)
    until = time.monotonic() + LOCK_SECONDS
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return None
        else:
            return handle
        if time.monotonic() > until:
            os.close(handle)
            return -1
        if not told:
            print(f"Waiting for another trainer to leave {output_dir}.", flush=True)
            told = True
        time.sleep(0.2)


# --- rows that broke a loss ------------------------------------------------------------------


def save_offending_rows(
    rollouts: Rollouts, credit: Credit | None, rows: Any, path: Path, args: SPOConfig, run_id: str
) -> Path:
    """The whole prompt groups of the given rows, for a look at what broke the loss.

    Before credit is assigned (None) a completion is one segment of advantage 0.
    """
    size = rollouts.num_generations
    groups = sorted({int(row) // size for row in rows})
    chosen = np.array([group * size + i for group in groups for i in range(size)])
    part = select_rows(rollouts, chosen)
    if credit is None:
        uncut = np.where(part.completion_mask, 0, -1)
        return save_rollouts(
            part, path, Credit(uncut, np.zeros(uncut.shape, np.float32), None), args, run_id
        )
    returns = credit.token_returns
    of_part = Credit(
        credit.segment_ids[chosen],
        credit.token_advantages[chosen],
        None if returns is None else returns[chosen],
        credit.entropy_threshold,
    )
    return save_rollouts(part, path, of_part, args, run_id)
