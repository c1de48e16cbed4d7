"""A built model -> one whose frozen and trained weights are cut over the processes (PyTorch's
FSDP2), and the few places where whole tensors are wanted back.

A layer's weights are gathered for as long as the layer runs, forward and backward. What PEFT adds
stays whole on every process: adapters are small, and several networks switch them on one model.
Gradients of cut weights arrive summed over the processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from spo.launch import Sharding


class ShardedModel:
    """A Transformers model whose weights are cut, layer by layer, but for those that stay whole.

    Embeddings, norms and heads beside the layers belong to the model as the root. They stay whole
    from its forward pass to its backward pass, so that a head can be read outside of the model.

    Attributes:
        is_gathered: all weights are whole at present.
    """

    def __init__(self, model: PreTrainedModel, uncut: set[nn.Parameter], plan: Sharding):
        _check_types(model, uncut)
        mesh = init_device_mesh(model.device.type, (torch.distributed.get_world_size(),))
        settings: dict[str, Any] = {"mesh": mesh, "ignored_params": uncut}
        layers = _layers(model, plan)
        for layer in layers:
            fully_shard(layer, reshard_after_forward=plan.reshard_after_forward, **settings)
        fully_shard(model, reshard_after_forward=False, **settings)
        self.model, self.layers, self.plan, self.is_gathered = model, layers, plan, False
        for part in (*layers, model):
            # sums, as every loss has one denominator for all processes; Gloo has no other reduction
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)

    def around(self, forward: Callable) -> Callable:
        """A forward pass past the model's own, with what FSDP2 does before and after that."""
        self.model.forward_past = forward
        register_fsdp_forward_method(self.model, "forward_past")
        wrapped = self.model.forward_past
        del self.model.forward_past
        return wrapped

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold all weights whole: passes without gradient then need no other process, and each may
        make as many as it likes. All processes enter and leave together."""
        if self.is_gathered:
            yield
            return
        parts, self.is_gathered = (*self.layers, self.model), True
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
            for layer in self.layers:
                layer.set_reshard_after_forward(self.plan.reshard_after_forward, recurse=False)
            self.is_gathered = False


def _check_types(model: PreTrainedModel, uncut: set[nn.Parameter]) -> None:
    for name, parameter in model.named_parameters():
        if parameter not in uncut and not parameter.is_floating_point():
            raise ValueError(
                f"FSDP2 cannot cut {name}, which is {parameter.dtype}: load 4-bit weights with "
                "bnb_4bit_quant_storage set to a float type, and no 8-bit ones."
            )


def _layers(model: PreTrainedModel, plan: Sharding) -> list[nn.Module]:
    names = plan.layer_classes or set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(
            f"FSDP2 finds no layers in {type(model).__name__} to cut it at: name their class in "
            "fsdp_transformer_layer_cls_to_wrap."
        )
    return layers


# --- whole tensors ---------------------------------------------------------------------------


def whole(tensor: Any) -> Any:
    """A cut tensor put together, on all processes at once; anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_main(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors by name with the cut ones put together, one after the other, in the main memory of
    process 0; others hold empty ones for them. All processes call it."""
    keep = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if full is not tensor:
            full = full.cpu() if keep else torch.empty(0, dtype=full.dtype)
        found[name] = full
    return found


def write(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be cut."""
    target.copy_(_cut_like(target, source))


def _cut_like(target: Tensor, source: Any) -> Any:
    """This process's part of a whole tensor, where `target` is cut and of its shape."""
    if not isinstance(target, DTensor) or getattr(source, "shape", None) != target.shape:
        return source
    source = source.to(target.device)
    return distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)


def keep_whole_state(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> None:
    """Let `state_dict` and `load_state_dict` speak of whole tensors: a checkpoint says nothing of
    how many processes wrote it. All processes call either together.

    Raises:
        ValueError: it trains other weights than these, or cannot train cut ones.
    """
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    if {id(weight) for weight in trained} != {id(weight) for weight in weights}:
        raise ValueError(
            "FSDP2 has put cut weights in the place of those the given optimizer was made for; "
            "choose one by optim= and learning_rate= instead."
        )
    is_cut = any(isinstance(weight, DTensor) for weight in weights)
    if is_cut and not isinstance(optimizer, torch.optim.AdamW):
        raise ValueError(
            f"{type(optimizer).__name__} cannot train weights cut by FSDP2: set optim to "
            "adamw_torch or adamw_torch_fused, or train an adapter."
        )

    def put_together(_, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"state": {i: whole_on_main(of) for i, of in state["state"].items()}}

    def cut(_, state: dict[str, Any]) -> dict[str, Any]:
        parts = {
            i: {name: _cut_like(trained[i], value) for name, value in of.items()}
            for i, of in state["state"].items()
        }
        return state | {"state": parts}

    optimizer.register_state_dict_post_hook(put_together)
    optimizer.register_load_state_dict_pre_hook(cut)
