"""Checkpoints: everything that `train` needs to continue exactly, whole or not there at all.

A checkpoint is written under a temporary name, flushed to the disk and renamed. Its state file
carries a mark, the run's id, the settings, and a checksum of every file and of itself.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR

from spo.errors import NonFiniteLossError, RunFolderError, SaveError
from spo.networks.sharding import whole, whole_on_main, write

STATE_FILE, WEIGHTS_FILE = "trainer_state.json", "weights.safetensors"
MARK = "spo_checkpoint"
VERSION = 1
KEPT_UNASKED = 2
"""Checkpoints that nobody asked for, made by the clock or at a signal: the newest ones stay."""


# --- what there is ---------------------------------------------------------------------------


def numbered(output_dir: Path) -> list[tuple[int, Path]]:
    """Everything named like a checkpoint, by number; an HF Trainer's, too."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d{1,18})", path.name)) and path.is_dir()
    ]
    return sorted(found, key=lambda pair: pair[0])


def path_of(output_dir: Path, step: int) -> Path:
    return output_dir / f"checkpoint-{step:06d}"


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """The state file, None where it is no whole one of SPO."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(state, dict) and state.get(MARK) == VERSION
    return state if whole and state.get("checksum") == _checksum_of_state(state) else None


def checkpoints_in(output_dir: Path, run_id: str | None = None) -> list[Path]:
    """Complete checkpoints of SPO, oldest first; with `run_id` those of this run only."""
    found = []
    for number, path in numbered(output_dir):
        state = read_state(path)
        if state is not None and state["step"] == number and run_id in (None, state["run_id"]):
            found.append(path)
    return found


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is as it was written."""
    state = read_state(checkpoint)
    if state is None:
        return f"{STATE_FILE} is missing or damaged"
    for name, (size, digest) in state["files"].items():
        path = checkpoint / name
        try:
            if path.stat().st_size != size or _checksum(path) != digest:
                return f"{name} is damaged"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def last_good(output_dir: Path, run_id: str | None = None) -> Path | None:
    """The newest checkpoint that is as it was written."""
    newest_first = reversed(checkpoints_in(output_dir, run_id))
    return next((path for path in newest_first if damage(path) is None), None)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum_of_state(state: dict[str, Any]) -> str:
    rest = {name: value for name, value in state.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# --- which one to resume from ----------------------------------------------------------------


def refuse_without(output_dir: Path, wanted: str | bool) -> None:
    """A first look, before weights are loaded, that reads no checkpoint through.

    Raises:
        RunFolderError: there is none.
    """
    if wanted in (True, "latest"):
        if not checkpoints_in(output_dir):
            raise RunFolderError(f"There is no complete checkpoint in {output_dir} to resume from.")
    elif wanted != "auto" and read_state(Path(wanted)) is None:
        raise RunFolderError(f"{wanted} is not a complete checkpoint of SPO.")


def choose(output_dir: Path, wanted: str | bool, run_id: str | None) -> tuple[Path | None, str]:
    """The checkpoint that "auto", "latest" (or True) or a path stands for, read through once; and
    what a person should know about the choice.

    None under "auto" means a new start: there is no checkpoint.

    Raises:
        RunFolderError: there is none, or none that is whole.
    """
    if wanted not in (True, "latest", "auto"):
        return _given(Path(wanted)), ""
    bad: list[str] = []
    for number, path in reversed(numbered(output_dir)):
        reason = _unfit(path, number, run_id)
        if reason is None:
            return path, f"Not from {'; '.join(bad)}: resuming from {path}." if bad else ""
        if reason:
            bad.append(f"{path.name} ({reason})")
    if bad:
        raise RunFolderError(
            f"No checkpoint in {output_dir} is whole: {'; '.join(bad)}; start anew in another "
            "output_dir, or here with --overwrite_output_dir."
        )
    refuse_without(output_dir, wanted)
    return None, ""


def _given(path: Path) -> Path:
    refuse_without(path.parent, str(path))
    reason = damage(path)
    if reason is None:
        return path
    good = last_good(path.absolute().parent)
    advice = f"the last good one is {good}" if good else "there is no other one beside it"
    raise RunFolderError(f"{path} cannot be resumed from: {reason}; {advice}.")


def _unfit(path: Path, number: int, run_id: str | None) -> str | None:
    """Why a run cannot go on from a checkpoint: "" where it is none of this run, None if it can."""
    state = read_state(path)
    if state is None:
        return f"{STATE_FILE} is damaged" if (path / WEIGHTS_FILE).exists() else ""
    if run_id not in (None, state["run_id"]):
        return ""
    return damage(path) if state["step"] == number else f"it is of step {state['step']}"


# --- writing ---------------------------------------------------------------------------------


def check_finite(accelerator: Accelerator, weights: dict[str, torch.Tensor]) -> None:
    """Nothing that is not finite is saved: a run cannot be resumed from it.

    Raises:
        NonFiniteLossError: a weight or a number of an optimizer is not finite.
    """
    tensors = dict(weights)
    for i, optimizer in enumerate(accelerator._optimizers):
        for j, slots in enumerate(optimizer.state.values()):
            tensors |= {f"optimizer {i}, {k} of weight {j}": v for k, v in slots.items()}
    for name, tensor in tensors.items():
        if not torch.is_tensor(tensor) or not tensor.is_floating_point():
            continue
        if not whole(tensor).isfinite().all():
            raise NonFiniteLossError(f"{name} is not finite", [])


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    weights: dict[str, torch.Tensor],
    state: dict[str, Any],
    save_total_limit: int | None = None,
    best_step: int | None = None,
) -> Path:
    """Write `weights` (everything that training changes), optimizers, schedules, random states and
    `state`, which holds step, run_id and whether the checkpoint was asked for. The checkpoint of
    `best_step` stays, however old.

    Raises:
        SaveError: on every process, if one could not write its part.
    """
    final = path_of(output_dir, state["step"])
    temporary = output_dir / f".{final.name}.tmp"
    weights = whole_on_main(weights)
    trouble = _room_for(accelerator, output_dir, weights) if accelerator.is_main_process else None
    together(accelerator, trouble)
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
            save_file(contiguous, temporary / WEIGHTS_FILE)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError
        trouble = _no_checkpoint(final, error)
    if not _any_trouble(accelerator, trouble) and accelerator.is_main_process:
        try:
            _publish(temporary, final, state)
            delete_old(output_dir, state["run_id"], save_total_limit, best_step)
        except OSError as error:
            trouble = _no_checkpoint(final, error)
    if trouble is not None and accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)  # the room it takes is wanted
    together(accelerator, trouble)
    return final


def together(accelerator: Accelerator, trouble: str | None) -> None:
    """Raise what one process could not do on all of them."""
    if said := _any_trouble(accelerator, trouble):
        raise SaveError(said)


def _any_trouble(accelerator: Accelerator, trouble: str | None) -> str | None:
    troubles = gather_object([trouble]) if accelerator.num_processes > 1 else [trouble]
    return next((said for said in troubles if said), None)


def _no_checkpoint(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["no reason"])[0]
    return f"{path} could not be written: {reason}"


def size_of(accelerator: Accelerator, weights: dict[str, torch.Tensor]) -> int:
    """Bytes of a checkpoint, without its small files."""
    slots = [slot for o in accelerator._optimizers for s in o.state.values() for slot in s.values()]
    tensors = [value for value in (*weights.values(), *slots) if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _room_for(accelerator: Accelerator, output_dir: Path, weights: dict) -> str | None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)  # it may have been moved away
        free = shutil.disk_usage(output_dir).free
    except OSError as error:
        return _no_checkpoint(output_dir, error)
    needed = size_of(accelerator, weights)
    if free >= needed:
        return None
    return (
        f"a checkpoint needs {needed / 2**20:,.0f} MiB and {output_dir} has {free / 2**20:,.0f} MiB"
    )


def _publish(temporary: Path, final: Path, state: dict[str, Any]) -> None:
    """Give a written folder its state, flush it, and let it appear under its name."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    state = {MARK: VERSION} | state
    state["files"] = {
        str(path.relative_to(temporary)): [path.stat().st_size, _checksum(path)] for path in files
    }
    state["checksum"] = _checksum_of_state(json.loads(json.dumps(state)))
    (temporary / STATE_FILE).write_text(json.dumps(state))
    for path in (*files, temporary / STATE_FILE, temporary):
        flush(path)
    before = final.with_name(f".{final.name}.before.tmp")
    if read_state(final) is not None:
        shutil.rmtree(before, ignore_errors=True)
        final.rename(before)
    elif final.exists():  # it may be a person's
        final.rename(free_name(final))
    temporary.rename(final)
    flush(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def delete(checkpoint: Path) -> None:
    """Out of sight first: a kill leaves no half one under its name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def remove_unfinished(output_dir: Path) -> None:
    """Finish what a kill has left half done to checkpoints."""
    for path in output_dir.glob(".checkpoint-*.before.tmp"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".before.tmp"))
        if not final.exists():
            path.rename(final)
    for path in output_dir.glob(".checkpoint-*.tmp"):
        if re.fullmatch(r"\.checkpoint-\d+(\.before)?\.tmp", path.name):
            shutil.rmtree(path, ignore_errors=True)


def free_name(path: Path) -> Path:
    """A name beside it for what stands in the way; it may be a person's."""
    names = (path.with_name(f"{path.name}.old-{i}") for i in range(1, 10**6))
    return next(name for name in names if not name.exists())


def flush(path: Path) -> None:
    """Make the disk hold a file or a folder's list of names."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete_old(
    output_dir: Path, run_id: str, save_total_limit: int | None, best_step: int | None = None
) -> None:
    """Keep the newest and the best; those that nobody asked for make room for newer ones of their
    kind."""
    ours = checkpoints_in(output_dir, run_id)
    best = path_of(output_dir, best_step) if best_step else None
    others = [path for path in ours if path != best]
    if save_total_limit is not None:
        kept = save_total_limit - (best in ours)
        kept = max(kept, 1) if ours and ours[-1] != best else kept
        old = others[: max(len(others) - kept, 0)]
    else:
        unasked = [path for path in others if not read_state(path)["asked"]]
        old = unasked[:-KEPT_UNASKED]
    if old and damage(ours[-1]) is None:  # read back before another one is given up
        for path in old:
            delete(path)


# --- reading ---------------------------------------------------------------------------------


def restore_checkpoint(
    accelerator: Accelerator, path: Path, weights: dict[str, torch.Tensor], retune: bool = False
) -> None:
    """Write a checkpoint into `weights` and what Accelerate prepared.

    With `retune` learning rates, decay and the like are those of the present settings, at the
    place in the schedule where the checkpoint stands.
    """
    load_weights(path, weights)
    present = [[_settings(group) for group in groups] for groups in _groups(accelerator)]
    bases = [list(scheduler.scheduler.base_lrs) for scheduler in accelerator._schedulers]
    accelerator.load_state(str(path), map_location="cpu")
    if not retune:
        return
    for groups, settings in zip(_groups(accelerator), present, strict=True):
        for group, of_group in zip(groups, settings, strict=True):
            group.update(of_group)
    for prepared, rates in zip(accelerator._schedulers, bases, strict=True):
        scheduler = prepared.scheduler
        scheduler.base_lrs = rates
        if isinstance(scheduler, LambdaLR):
            factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            now = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
            for group, rate in zip(scheduler.optimizer.param_groups, now, strict=True):
                group["lr"] = rate


def load_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write those of a checkpoint into `weights`.

    Raises:
        RunFolderError: they are of other shapes.
    """
    saved = load_file(path / WEIGHTS_FILE)
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in weights.items()}:
        raise RunFolderError(
            f"{path} was written by a run with other models or adapters than this one, or another "
            "critic; resume with the flags of that run."
        )
    for name, tensor in weights.items():
        write(tensor, saved[name])


def _groups(accelerator: Accelerator) -> Iterator[list[dict[str, Any]]]:
    return (optimizer.param_groups for optimizer in accelerator._optimizers)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
