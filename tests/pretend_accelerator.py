"""A pretend accelerator: tensors on a device "pretend" whose numbers lie in the CPU's memory.

It is as strict as a card, and slower: an operation that mixes devices raises, there is no float64
(as on Apple's), and whatever makes the host wait is counted. PyTorch allows one such backend per
process, so tests run it in a process of their own (`python tests/pretend_runs.py`).

A pretend tensor's storage points at the memory of a CPU storage kept in `_memory`. Every operation
that reaches the device is done on CPU tensors over the same memory.
"""

import os
from collections import Counter
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
CPU_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

READS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim", "_unique2"}
"""Operations that end only when the host has seen a number."""

_memory: dict[int, tuple[torch.UntypedStorage, StorageWeakRef]] = {}
"""By address: the CPU's storage, and whether the pretend one that points at it still lives."""

waits: Counter[str] = Counter()
"""How often the host has waited, by what it waited for."""


class MixedDevicesError(RuntimeError):
    """What a card would refuse."""


class _Module:
    """What torch asks of the device by the name torch.pretend."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        waits["synchronize"] += 1

    def empty_cache(self) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _is_ours(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def _on_cpu(value: Any) -> Any:
    """A CPU tensor over a pretend one's memory; the device's name becomes the CPU's."""
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    if not _is_ours(value):
        return value
    storage, _ = _memory[value.untyped_storage().data_ptr()]
    empty = torch.empty(0, dtype=value.dtype)
    seen = empty.set_(storage, value.storage_offset(), value.size(), value.stride())
    return torch._neg_view(seen) if value.is_neg() else seen


def _set(tensor: torch.Tensor, storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    """Lay a pretend tensor over a pretend storage as `like` lies over its own."""
    place = (storage, like.storage_offset(), like.size(), like.stride())
    torch.ops.aten.set_.source_Storage_storage_offset.redispatch(CPU_KEY, tensor, *place)
    return tensor


def _on_device(value: Any, ours: dict[int, torch.Tensor]) -> Any:
    """A pretend tensor over a CPU one's memory; `ours` are the operation's inputs by address."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.float64:
        raise RuntimeError("a pretend accelerator, like Apple's, has no float64")
    address = value.untyped_storage().data_ptr()
    if address in ours:  # a view
        storage = ours[address].untyped_storage()
    else:
        if not address:  # without a number; other storages without one are others
            value = torch.empty(16, dtype=value.dtype).as_strided(value.size(), value.stride())
            address = value.untyped_storage().data_ptr()
        kept = value.untyped_storage()
        device = torch.device(NAME, 0)
        size = kept.nbytes()
        storage = torch._C._construct_storage_from_data_pointer(address, device, size)
        _memory[address] = kept, StorageWeakRef(storage)
        if len(_memory) % 512 == 0:
            for old in [a for a, (_, ref) in _memory.items() if ref.expired()]:
                del _memory[old]
    return _set(torch._C._acc.create_empty_tensor((0,), value.dtype), storage, value)


def _check_devices(op: torch._ops.OpOverload, tensors: list[torch.Tensor]) -> None:
    """Numbers of no dimension may come from the CPU, as on a card."""
    strange = [t for t in tensors if t.device.type == "cpu" and t.dim()]
    if strange:
        shapes = [(t.device.type, tuple(t.shape)) for t in tensors]
        raise MixedDevicesError(f"{op} on tensors of two devices: {shapes}")


def _copy(op: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    source, target = args[:2] if "from" in op.name() else args[1::-1]
    if source.device != target.device:
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        to_host = target.device.type == "cpu"
        if not non_blocking:
            waits["to host" if to_host else "to device"] += 1
    _on_cpu(target).copy_(_on_cpu(source))
    return target


def _run(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Any operation that the device is asked for."""
    name = op.name().split("::")[1].split(".")[0]
    if name in ("_copy_from", "copy_", "_copy_from_and_resize"):
        return _copy(op, args, kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    _check_devices(op, tensors)
    if name in READS or _by_mask(name, args):
        waits[name] += 1
    if name == "set_":
        return op.redispatch(CPU_KEY, *args, **kwargs)
    if name == "_pin_memory":
        raise RuntimeError("a pretend accelerator has no pinned memory")
    ours = {t.untyped_storage().data_ptr(): t for t in tensors if _is_ours(t)}
    seen = tree_map(_on_cpu, (args, kwargs))
    with torch._C._AutoDispatchBelowAutograd():
        results = op(*seen[0], **seen[1])
    written = _written(op, args, kwargs, seen)
    as_list = results if isinstance(results, tuple | list) else (results,)
    made = [
        written[i] if i in written else tree_map(lambda r: _on_device(r, ours), result)
        for i, result in enumerate(as_list)
    ]
    return type(results)(made) if isinstance(results, tuple | list) else made[0]


def _by_mask(name: str, args: tuple) -> bool:
    """Writes where a mask says so: how many numbers that are is found out first. (Reading by a mask
    reaches the device as nonzero.)"""
    masks = args[1] if name in ("index_put_", "_index_put_impl_") else []
    return any(isinstance(m, torch.Tensor) and m.dtype == torch.bool for m in masks)


def _written(op, args, kwargs, seen) -> dict[int, torch.Tensor]:
    """Outputs that are inputs written to, by position; resized ones get their new memory."""
    schema, outputs, count = op._schema, {}, 0
    returned = sum(r.alias_info is not None and r.alias_info.is_write for r in schema.returns)
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        whole = args[i] if i < len(args) else kwargs.get(argument.name)
        on_cpu = seen[0][i] if i < len(args) else seen[1].get(argument.name)
        if isinstance(whole, torch.Tensor):
            if on_cpu.shape != whole.shape:
                _set(whole, _on_device(on_cpu, {}).untyped_storage(), on_cpu)
            if count < returned:
                outputs[count] = whole
            count += 1
    return outputs


def _copy_storage(storage: torch.UntypedStorage, memo: dict[int, Any]) -> torch.UntypedStorage:
    """For copy.deepcopy, which would ask for an allocator."""
    if storage.device.type != NAME:
        return _copy_cpu_storage(storage, memo)
    if storage._cdata not in memo:
        kept, _ = _memory[storage.data_ptr()]
        made = torch.empty(0, dtype=torch.uint8).set_(kept.clone())
        memo[storage._cdata] = _on_device(made, {}).untyped_storage()
    return memo[storage._cdata]


_copy_cpu_storage = torch.UntypedStorage.__deepcopy__
_library = torch.library.Library("_", "IMPL")


def register() -> torch.device:
    """Make the device known to this process, and the one that Accelerate chooses."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.UntypedStorage.__deepcopy__ = _copy_storage
    _library.fallback(_run, "PrivateUse1")
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME
    return torch.device(NAME, 0)


@contextmanager
def counted(into: Counter[str]):
    """Add what the host waits for meanwhile."""
    before = Counter(waits)
    yield
    into.update(waits - before)
