"""A decoder and its head, tried on random tokens -> what they do, or one sentence why they cannot
be trained here.

No table of families: what scoring, sampling and update assume of a model is measured on the model
itself, in its own precision, before the first step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.functional import linear

from spo.devices import widest_float
from spo.networks.dropout import base_modules
from spo.networks.logits import LogitTransform
from spo.networks.network import Network, decoder, transformer
from spo.networks.prefill import (
    DecodeStep,
    SharedPrompts,
    cache_argument,
    can_select_rows,
    empty_cache,
    select_rows,
)

LENGTH = 16
"""Tokens of a probe."""

PROMPT_LENGTHS = (LENGTH - 2, 2, 2, 4)
"""Of the rows that a cache is tried with: most are padded, two are equal."""


def probe_policy(network: Network) -> LogitTransform:
    """What the model does to its logits, if all that training assumes of it holds.

    Raises:
        ValueError: it is not a causal decoder under one linear head, does not go on from a cache
            as it computes a whole sequence, or computes otherwise in training mode.
    """
    with _trying(network):
        transform = measure_logits(network)
        _check_decoder(network)
        _check_cache(network)
    return transform


def probe_critic(network: Network) -> None:
    """A critic reads no tokens ahead, and computes in training mode what it says in evaluation."""
    with _trying(network):
        _check_decoder(network)


def changes_nothing(network: Network) -> bool:
    """The adapter is new: with it and without it the model says the same, to the bit."""
    with _trying(network):
        ids, base = random_ids(network, 4), decoder(network.model)
        logits = network.head(base(input_ids=ids, use_cache=False).last_hidden_state)
        with network.model.disable_adapter():
            without = network.head(base(input_ids=ids, use_cache=False).last_hidden_state)
        pairs = [(logits, without)]
        for layer, original in _adapted_embeddings(network.model):  # few of their rows are in ids
            every = torch.arange(original.weight.shape[0], device=network.device)
            pairs += [(layer(part), original(part)) for part in every.split(4096)]
        return all(torch.equal(*pair) for pair in pairs)


def _adapted_embeddings(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Embedding]]:
    """Embeddings with an adapter, and without."""
    for layer in model.modules():
        original = None
        if isinstance(layer, BaseTunerLayer):
            original = layer.get_base_layer()
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            original = layer.original_module
        if isinstance(original, nn.Embedding):
            yield layer, original


def measure_logits(network: Network) -> LogitTransform:
    """From the decoder's last states to the logits: how the model scales and caps them.

    What the head says is exchanged for powers of two, so that the model's own code shows its
    numbers exactly, at any precision of the weights and any size of its logits.
    """
    model, head, base = transformer(network.model), network.head, decoder(network.model)
    ids = random_ids(network, 1)
    if base is model or not hasattr(head, "weight"):
        raise _no_linear_head(network)
    states = base(input_ids=ids, use_cache=False).last_hidden_state
    with _calls(head) as calls:
        logits = model(input_ids=ids, use_cache=False).logits
    if len(calls) != 1 or calls[0][0].shape != states.shape or calls[0][1].shape != logits.shape:
        raise _no_linear_head(network)
    inputs, outputs = calls[0]
    product = linear(inputs, head.weight.to(inputs.dtype), getattr(head, "bias", None))

    with _exchanged(head, _powers(outputs)) as powers:
        logits = model(input_ids=ids, use_cache=False).logits
    transform, state_scale = _fit(powers, logits), _ratio(inputs, states)
    exact = (
        torch.allclose(logits.to(powers), transform(powers).to(powers), rtol=1e-4)
        and _error(inputs, states * state_scale) <= tolerance(network)
        and _error(outputs, product) <= tolerance(network)
        and (state_scale == 1 or getattr(head, "bias", None) is None)
    )
    if not exact:
        raise _no_linear_head(network)
    return LogitTransform(transform.scale * state_scale, transform.softcap)


def _fit(outputs: Float[Tensor, "1 S V"], logits: Float[Tensor, "1 S V"]) -> LogitTransform:
    """Slope at the smallest number, bound at the largest."""
    outputs, logits = outputs.flatten(), logits.flatten()
    small, large = outputs.abs().argmin(), outputs.abs().argmax()
    scale = float(logits[small] / outputs[small])
    bound, line = float(logits[large].abs()), abs(scale * float(outputs[large]))
    return LogitTransform(scale, None if bound > 0.999 * line else bound)


def _ratio(inputs: Float[Tensor, "*"], states: Float[Tensor, "*"]) -> float:
    """The factor from the decoder's states to what the head is given; some families have one."""
    inputs, states = inputs.flatten().float(), states.flatten().float()
    ratio = float(inputs @ states / (states @ states))
    return 1.0 if abs(ratio - 1) < 1e-3 else ratio


def _check_decoder(network: Network) -> None:
    """Tokens to come change no state, nor does training mode."""
    base = decoder(network.model)
    ids, others = random_ids(network, 2)[:, None]
    half = LENGTH // 2
    mixed = torch.cat([ids[:, :half], others[:, half:]], 1)
    states = base(input_ids=ids, use_cache=False).last_hidden_state
    with_others = base(input_ids=mixed, use_cache=False).last_hidden_state
    name = type(transformer(network.model)).__name__
    if _error(with_others[:, :half], states[:, :half]) > tolerance(network) / 5:
        raise ValueError(
            f"{name} lets a token see the tokens after it, so it cannot say what comes next; "
            "choose a causal language model."
        )
    for module in base_modules(network.model):  # an adapter's dropout is meant
        module.training = True
    training = base(input_ids=ids, use_cache=False).last_hidden_state
    network.eval()
    if _error(training, states) > tolerance(network):
        raise ValueError(
            f"{name} computes otherwise in training mode than in evaluation mode, dropout apart, "
            "so its updates would not be of what it sampled; choose another model family."
        )


def _check_cache(network: Network) -> None:
    """Padded prompts and then token by token: the states of whole sequences."""
    base = decoder(network.model)
    name = type(transformer(network.model)).__name__
    if cache_argument(base) is None:
        raise ValueError(
            f"{name} takes no key-value cache, so SPO cannot sample from it; "
            "choose another model family."
        )
    if not can_select_rows(empty_cache(base.config)):
        raise ValueError(
            f"{name} keeps a cache of another kind, whose rows SPO cannot select, so it cannot "
            "sample from it; choose another model family."
        )
    ids = random_ids(network, len(PROMPT_LENGTHS))
    ids[2] = ids[1]
    whole = base(input_ids=ids, use_cache=False).last_hidden_state
    lengths = torch.tensor(PROMPT_LENGTHS, device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)
    prompts = SharedPrompts.build(
        [row[:n] for row, n in zip(ids.tolist(), PROMPT_LENGTHS, strict=True)], ids.device
    )
    step = prompts.first_step(base.config)
    states = [step.run(base)[:, -1][prompts.of_row]]
    select_rows(step.cache, prompts.of_row)
    mask = prompts.row_mask
    for position in (lengths, lengths + 1):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        step = DecodeStep(ids[rows, position][:, None], mask, position[:, None], step.cache)
        states.append(step.run(base)[:, -1])
    error = max(
        _error(torch.stack([state[row] for state in states]), whole[row, n - 1 : n + 2])
        for row, n in enumerate(PROMPT_LENGTHS)
    )
    if error > tolerance(network):
        raise ValueError(
            f"{name} does not go on from its cache as it computes a whole sequence (its states are "
            f"off by {error:.0%}), so it would not be trained on what it sampled; choose another "
            "model family."
        )


def tolerance(network: Network) -> float:
    """Of `_error`, for the same states computed in another way; what is wrong is off by about 1."""
    model = transformer(network.model)
    wide = model.dtype.itemsize > 2 and network.numerics.mixed_precision == "no"
    return 0.01 if wide and not getattr(model, "is_quantized", False) else 0.25


def random_ids(network: Network, rows: int) -> Int[Tensor, "b S"]:
    """Reproducible tokens; none that the config gives a meaning, such as an image's place."""
    model = transformer(network.model)
    ids = torch.arange(model.get_input_embeddings().weight.shape[0])
    named = model.config.to_dict() | model.config.get_text_config().to_dict()
    special = [v for name, v in named.items() if "token" in name and isinstance(v, int)]
    ids = ids[~torch.isin(ids, torch.tensor(special))]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(ids), (rows, LENGTH), generator=generator)
    return ids[drawn].to(network.device)


def _error(ours: Float[Tensor, "*"], theirs: Float[Tensor, "*"]) -> float:
    """Median over the states of the distance between two, relative to the length of one; infinite
    where ours alone is not finite.

    A median: in 16 bits a router may send a token elsewhere.
    """
    ours, theirs = ours.float(), theirs.float()
    if not theirs.isfinite().all():
        return 0.0  # broken weights, which scoring reports
    error = float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median())
    return error if error == error else float("inf")


def _powers(like: Tensor) -> Tensor:
    """±2ᵏ for k from -20 to 14 in random order, in float64 where the device has it."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-20, 15, like.shape, generator=generator)
    signs = torch.randint(2, like.shape, generator=generator) * 2 - 1
    return (signs * 2.0**exponents).to(like.device, widest_float(like.device))


def _no_linear_head(network: Network) -> ValueError:
    return ValueError(
        f"The logits of {type(transformer(network.model)).__name__} are not one linear head on its "
        "decoder's last states, scaled or capped by tanh, which is all that SPO's chunked "
        "log-probs reproduce; choose another model family."
    )


@contextmanager
def _trying(network: Network) -> Iterator[None]:
    """Switched on, in evaluation mode, without gradient, under autocast; undone afterwards."""
    training = network.model.training
    network.eval()
    try:
        with torch.no_grad(), network.active(), network.autocast():
            yield
    finally:
        network.train(training)


@contextmanager
def _calls(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(input, output) of every call."""
    calls: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(
        lambda _, inputs, output: calls.append((inputs[0], output))
    )
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def _exchanged(module: nn.Module, outputs: Tensor) -> Iterator[Tensor]:
    """Other outputs for the module's."""
    handle = module.register_forward_hook(lambda *_: outputs)
    try:
        yield outputs
    finally:
        handle.remove()
