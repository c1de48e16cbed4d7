"""Hidden states and the vocabulary head -> log-probs and entropies, a chunk of tokens at a time.

The (tokens × V) logits of a batch never exist, forward or backward.

Axes: N completion tokens of all rows laid end to end, n of one chunk, H hidden width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(states · Wᵀ / temperature) at the targets, one chunk of tokens at a time.

    With z the logits, p their softmax and τ the temperature,
        ∂ log p_y / ∂ state = (W_y − Σ_v p_v W_v) / τ,
    which needs nothing from later in the graph but a factor per token. So the forward pass,
    which holds p anyway, computes it at once, and a frozen head costs no recomputation. The
    gradient of a trainable head is (onehot − p)ᵀ · states, and there p is recomputed.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, targets, temperature, chunk_size):
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        logprobs = states.new_empty(len(states), dtype=_wide(states))
        states_grad = torch.empty_like(states) if needs_states else None
        for chunk in _chunks(len(states), chunk_size):
            logprobs[chunk], probs = _logprobs_and_softmax(
                _logits(states[chunk], weight, bias, temperature), targets[chunk]
            )
            if needs_states:
                direction = weight[targets[chunk]] - probs.to(weight.dtype) @ weight
                states_grad[chunk] = (direction / temperature).to(states.dtype)
            del probs  # one chunk's logits at a time
        if needs_weight or needs_bias:
            ctx.save_for_backward(states_grad, states, weight, bias, targets)
        else:
            ctx.save_for_backward(states_grad, None, None, None, None)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        return logprobs

    @staticmethod
    def backward(ctx, grad):
        states_grad, states, weight, bias, targets = ctx.saved_tensors
        _, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        weight_grad = torch.zeros_like(weight, dtype=_wide(weight)) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=_wide(bias)) if needs_bias else None
        for chunk in _chunks(len(grad), ctx.chunk_size) if needs_weight or needs_bias else ():
            logits = _logits(states[chunk], weight, bias, ctx.temperature)
            logits_grad = _logprobs_and_softmax(logits, targets[chunk])[1].neg_()
            index = targets[chunk, None]
            logits_grad.scatter_add_(1, index, torch.ones_like(index, dtype=logits.dtype))
            logits_grad *= (grad[chunk] / ctx.temperature)[:, None]
            if needs_weight:
                weight_grad += logits_grad.to(weight.dtype).T @ states[chunk]
            if needs_bias:
                bias_grad += logits_grad.sum(0)
            del logits, logits_grad
        states_grad = (
            states_grad * grad[:, None].to(states_grad.dtype) if ctx.needs_input_grad[0] else None
        )
        return states_grad, weight_grad, bias_grad, None, None, None


def token_logprobs(
    states: Float[Tensor, "N H"],
    lm_head: nn.Module,
    targets: Int[Tensor, " N"],
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> Float[Tensor, " N"]:
    """log π(y_t | s_t) in float32, differentiable; memory grows with the chunk, not with N × V.

    The products run in the autocast type when autocast is on, else in the head's own.
    """
    states, weight, bias = _compute_inputs(states, lm_head)
    return _TokenLogprobs.apply(states, weight, bias, targets, temperature, chunk_size)


@torch.no_grad()
def token_logprobs_and_entropies(
    states: Float[Tensor, "N H"],
    lm_head: nn.Module,
    targets: Int[Tensor, " N"],
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log π(y_t | s_t) and the full-softmax entropy −Σ π log π in nats, without gradient."""
    states, weight, bias = _compute_inputs(states, lm_head)
    logprobs = states.new_empty(len(states), dtype=_wide(states))
    entropies = torch.empty_like(logprobs)
    for chunk in _chunks(len(states), chunk_size):
        logits = _logits(states[chunk], weight, bias, temperature)
        logprobs[chunk], entropies[chunk] = logprobs_and_entropies(logits, targets[chunk])
    return logprobs, entropies


def logprobs_and_entropies(
    logits: Float[Tensor, "n V"], targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Of the softmax of `logits`: log-prob of the target and entropy in nats, (n,) each.

    >>> lp, h = logprobs_and_entropies(torch.zeros(1, 4), torch.tensor([2]))
    >>> print(f"{lp.item():.4f} {h.item():.4f}")  # -ln 4, ln 4
    -1.3863 1.3863
    """
    log_normalizer = logits.logsumexp(-1, keepdim=True)
    chosen = (logits.gather(-1, targets[:, None]) - log_normalizer).squeeze(-1)
    log_probs = logits - log_normalizer
    # exp(−inf) · −inf is NaN: a token that cannot be sampled adds nothing
    entropies = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
    return chosen, entropies


def _compute_inputs(states: Tensor, lm_head: nn.Module):
    """States, weight and bias of the head in the type the product runs in."""
    weight, bias = lm_head.weight, getattr(lm_head, "bias", None)
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = nn.functional.linear(states, weight, bias)
    return logits.to(_wide(logits)).div_(temperature)


def _logprobs_and_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets, (n,), and the softmax, (n, V), in the memory of the logits."""
    chosen = logits.gather(-1, targets[:, None])
    highest = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    total = exponentials.sum(-1, keepdim=True)
    return (chosen - highest - total.log()).squeeze(-1), exponentials.div_(total)


def _wide(tensor: Tensor) -> torch.dtype:
    """float64 stays, everything else is summed in float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, length, size))
