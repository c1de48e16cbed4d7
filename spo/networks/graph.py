"""A model's config and the flags of a run -> the bytes that one micro-batch's graph keeps.

The model is built on the meta device, where tensors have shapes but no storage, and gets fake
weights that autocast takes for real ones. One pass through `Network`, as the learner makes it, with
saved-tensor hooks then counts what the backward pass will need. So LoRA, mixed precision, gradient
checkpointing and an architecture's own habits are in the count instead of in a formula.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spo.config import SPOConfig
from spo.networks.batching import MicroBatch
from spo.networks.build import HEAD_NAMES, enable_gradient_checkpointing, leave_inputs_in_16_bits
from spo.networks.dropout import silence_dropout
from spo.networks.network import Network, Numerics, Want, decoder, transformer


@dataclass(frozen=True)
class Saved:
    """Bytes that a pass keeps for its backward pass: in all, and of them behind the last layer."""

    total: int
    behind_layers: int


class UnpredictableModelError(ValueError):
    """The forward pass of an architecture needs the values of its weights or inputs."""


def meta_model(config: PreTrainedConfig, dtype: torch.dtype, critic: bool = False) -> nn.Module:
    """The architecture on the meta device, with an attention that saves what a fused one does; of a
    critic without vocabulary head."""
    ALL_ATTENTION_FUNCTIONS["spo_fused_meta"] = _fused_attention
    config = copy.deepcopy(config)
    config.num_labels = 1
    build = AutoModelForSequenceClassification if critic else AutoModelForCausalLM
    with torch.device("meta"):
        model = build.from_config(config, dtype=dtype)
    model.set_attn_implementation("spo_fused_meta")
    return model


class _SaveLikeFlash(torch.autograd.Function):
    """Output of the right shape; saves queries, keys, values, output and log-sum-exps."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx, grad):
        _, key, value, *_ = ctx.saved_tensors
        return grad, torch.empty_like(key), torch.empty_like(value)


def _fused_attention(module, query, key, value, attention_mask, **kwargs):
    if torch.is_autocast_enabled("cpu"):  # whose list fused attention is on
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return _SaveLikeFlash.apply(query, key, value).transpose(1, 2), None


def graph_bytes(
    model: nn.Module, args: SPOConfig, rows: int, prompt: int, completion: int
) -> Saved:
    """What the learner's pass over a micro-batch saves, of a `meta_model`, adapters injected.

    Prompts are taken as whole rows have them: sharing them only makes it less.

    Raises:
        UnpredictableModelError: the architecture does not run without its weights.
    """
    model = copy.deepcopy(model)
    inner = transformer(model)
    silence_dropout(model)
    if args.mixed_precision != "no":
        leave_inputs_in_16_bits(model)
    if args.gradient_checkpointing:
        enable_gradient_checkpointing(inner)
    mode = FakeTensorMode()
    _with_fake_weights(model, mode)
    head, want = inner.get_output_embeddings(), "logprobs"
    if head is None:
        head, want = next(getattr(inner, n) for n in HEAD_NAMES if hasattr(inner, n)), "values"
    numerics = Numerics(args.mixed_precision, args.temperature, args.logits_chunk_size)
    ids = [[0] * prompt] * rows, [[0] * completion] * rows
    try:
        with mode:
            batch = MicroBatch.build(np.arange(rows), *ids, torch.device("cpu"))
            return saved_bytes(Network(model, head, numerics=numerics), batch, want)
    except (RuntimeError, NotImplementedError) as error:  # it looked at a number that is none
        raise UnpredictableModelError(
            f"The memory of {type(inner).__name__} cannot be predicted: {error}"
        ) from error


def saved_bytes(network: Network, batch: MicroBatch, want: Want) -> Saved:
    """Of the tensors that a pass in training mode saves for backward, weights apart; what several
    of them share is counted once."""
    weights = {p.untyped_storage()._cdata for p in network.model.parameters()}
    saved: dict[int, int] = {}
    held = []  # keeps the storages alive, so that no two of them share an address
    in_layers = []

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    network.train(True)
    layers = _layers(network.model)
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    mark = layers[-1].register_forward_hook(lambda *_: in_layers.append(sum(saved.values())))
    try:
        with hooks, network.active(), network.autocast():
            network(batch, want)
    finally:
        mark.remove()
    total = sum(saved.values())
    return Saved(total, total - in_layers[-1])


def _layers(model: nn.Module) -> list[nn.Module]:
    """The decoder's, or itself where it keeps them in no list."""
    inner = decoder(model)
    lists = [module for module in inner.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[])) or [inner]


def _with_fake_weights(model: PreTrainedModel, mode: FakeTensorMode) -> None:
    """Exchange every parameter and buffer, tied ones together."""
    fake: dict[torch.Tensor, torch.Tensor] = {}
    device = torch.device("cpu")
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in fake:
                    made = FakeTensor(mode, tensor.detach().to("meta"), device)
                    if isinstance(tensor, nn.Parameter):
                        made = nn.Parameter(made, tensor.requires_grad)
                    fake[tensor] = made
                table[name] = fake[tensor]
