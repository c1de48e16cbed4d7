"""Rows of tokens -> log-probs, entropies and values, completion-aligned.

Three things happen here and nowhere else: rows are laid out for a forward pass (`MicroBatch`),
the causal shift is made (`states_before_tokens`), and hidden states meet the vocabulary
(`token_logprobs`), a chunk of tokens at a time, so that the (tokens × V) logits of a batch never
exist, forward or backward.

Axes: b rows of a micro-batch, S prompt + completion positions, T completion tokens, N completion
tokens of all rows laid end to end, H hidden width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from spo.config import SPOConfig
from spo.models import Network
from spo.prefill import SharedPrompts

if TYPE_CHECKING:
    from spo.generation import Completions


@dataclass(frozen=True)
class MicroBatch:
    """Prompt + completion per row, right-padded to the longest row of this micro-batch.

    Padding stands after every real token, and attention is causal: it needs no mask. Where prompts
    are shared, rows begin with their prompt's last token.

    Attributes:
        rows: which rows of the rollout batch these are, (b,).
        input_ids: (b, S).
        token_rows, token_columns: row and completion position of each of the N tokens, (N,).
        state_columns: position in `input_ids` of the state before each token, (N,).
        prefixes: all but the last token of the rows' prompts; None where rows are whole.
    """

    rows: np.ndarray
    input_ids: Int[Tensor, "b S"]
    token_rows: Int[Tensor, " N"]
    token_columns: Int[Tensor, " N"]
    state_columns: Int[Tensor, " N"]
    prefixes: SharedPrompts | None = None

    @classmethod
    def build(
        cls,
        rows: np.ndarray,
        prompt_ids: list[list[int]],
        token_ids: list[list[int]],
        device: torch.device,
        share_prompts: bool = False,
    ) -> "MicroBatch":
        """Lay out the given rows of the ragged `prompt_ids` and `token_ids`."""
        prompts, prefixes = [prompt_ids[row] for row in rows], None
        if share_prompts:
            prefixes = SharedPrompts.build([ids[:-1] for ids in prompts], device)
            prompts = [ids[-1:] for ids in prompts]
        sequences = [[*prompt, *token_ids[row]] for prompt, row in zip(prompts, rows, strict=True)]
        input_ids = np.zeros((len(rows), max(map(len, sequences))), dtype=np.int64)
        for i, sequence in enumerate(sequences):
            input_ids[i, : len(sequence)] = sequence
        counts = np.array([len(token_ids[row]) for row in rows])
        token_rows = np.repeat(np.arange(len(rows)), counts)
        token_columns = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        prompt_lengths = np.array([len(prompt) for prompt in prompts])
        state_columns = prompt_lengths[token_rows] - 1 + token_columns
        tensors = (input_ids, token_rows, token_columns, state_columns)
        return cls(rows, *(torch.from_numpy(x).to(device) for x in tensors), prefixes)

    @property
    def targets(self) -> Int[Tensor, " N"]:
        """The sampled tokens."""
        return self.input_ids[self.token_rows, self.state_columns + 1]

    def to_rows(self, flat: Float[Tensor, " N"]) -> Float[Tensor, "b T"]:
        """(N,) -> (b, T), zero on padding; differentiable."""
        num_columns = int(self.token_columns.max()) + 1 if len(flat) else 0
        padded = flat.new_zeros(len(self.rows), num_columns)
        return padded.index_put((self.token_rows, self.token_columns), flat)


class TokenRows:
    """The rows of a rollout batch, to be cut into micro-batches.

    With `share_prompts` a prompt is computed once for all its completions in a micro-batch, where
    that is less work: forward and backward go through its key-value cache. Gradient checkpointing
    cannot do that.
    """

    def __init__(
        self, prompt_ids: list[list[int]], token_ids: list[list[int]], share_prompts: bool = False
    ):
        self.prompt_ids, self.token_ids, self.share_prompts = prompt_ids, token_ids, share_prompts
        self.prompt_lengths = np.array([len(ids) for ids in prompt_ids])
        self.lengths = np.array([len(ids) for ids in token_ids])
        self.total_lengths = self.prompt_lengths + self.lengths

    def micro_batches(
        self,
        rows: np.ndarray,
        max_rows: int,
        max_tokens: int | None,
        device: torch.device,
    ) -> Iterator[MicroBatch]:
        """Of the given rows, laid out: see `split`."""
        for chosen in self.split(rows, max_rows, max_tokens):
            share = self._work(chosen) < self._work_of_whole_rows(chosen)
            yield MicroBatch.build(chosen, self.prompt_ids, self.token_ids, device, share)

    def split(
        self, rows: np.ndarray, max_rows: int, max_tokens: int | None = None
    ) -> list[np.ndarray]:
        """Cut rows into micro-batches of at most `max_rows`, or of `max_tokens` padded ones.

        Longest first, so that memory runs out at once or not at all; or, where that leaves less to
        compute, prompt by prompt. A row longer than `max_tokens` stands alone.

        >>> rows = TokenRows([[0]] * 4, [[0] * n for n in (1, 8, 2, 7)])
        >>> rows.split(np.arange(4), max_rows=2)
        [array([1, 3]), array([2, 0])]
        >>> rows.split(np.arange(4), max_rows=1, max_tokens=18)
        [array([1, 3]), array([2, 0])]
        """
        rows = rows[np.argsort(-self.total_lengths[rows], kind="stable")]
        by_length = self._cut(rows, max_rows, max_tokens)
        if not self.share_prompts:
            return by_length
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            groups.setdefault(tuple(self.prompt_ids[row]), []).append(row)
        by_prompt = self._cut(np.array(list(chain(*groups.values())), int), max_rows, max_tokens)
        return min(by_length, by_prompt, key=lambda parts: sum(map(self._work, parts)))

    def _cut(self, rows: np.ndarray, max_rows: int, max_tokens: int | None) -> list[np.ndarray]:
        parts = []
        while len(rows):
            longest = int(self.total_lengths[rows].max())
            count = max_rows if max_tokens is None else max(1, max_tokens // longest)
            parts.append(rows[:count])
            rows = rows[count:]
        return parts

    def _work_of_whole_rows(self, rows: np.ndarray) -> int:
        """Padded tokens with a prompt in every row."""
        return len(rows) * int(self.total_lengths[rows].max())

    def _work(self, rows: np.ndarray) -> int:
        """Padded tokens, shared prompts counted once where that is less."""
        whole = self._work_of_whole_rows(rows)
        if not self.share_prompts or self.prompt_lengths[rows].min() < 2:
            return whole
        num_prompts = len({tuple(self.prompt_ids[row]) for row in rows})
        prefixes = num_prompts * int(self.prompt_lengths[rows].max() - 1)
        return min(whole, prefixes + len(rows) * int(self.lengths[rows].max() + 1))


def states_before_tokens(
    hidden_states: Float[Tensor, "b S H"], batch: MicroBatch
) -> Float[Tensor, "N H"]:
    """The causal shift: the hidden state *before* each completion token is consumed.

    For token 0 that is the state at the prompt's last token.
    """
    return hidden_states[batch.token_rows, batch.state_columns]


def hidden_states(decoder: nn.Module, batch: MicroBatch) -> Float[Tensor, "N H"]:
    """Run the decoder (a model without its head) and keep the states before completion tokens."""
    if batch.prefixes is None:
        output = decoder(input_ids=batch.input_ids, use_cache=False)
    else:
        _, cache = batch.prefixes.run(decoder)
        before = batch.prefixes.row_mask
        output = decoder(
            input_ids=batch.input_ids,
            attention_mask=torch.cat([before, torch.ones_like(batch.input_ids)], 1),
            position_ids=before.sum(1, keepdim=True)
            + torch.arange(batch.input_ids.shape[1], device=before.device),
            past_key_values=cache,
            use_cache=True,
        )
    return states_before_tokens(output.last_hidden_state, batch)


def token_values(value_head: nn.Module, states: Float[Tensor, "N H"]) -> Float[Tensor, " N"]:
    """V(s_t) from the state before token t, in float32."""
    with torch.autocast(states.device.type, enabled=False):
        return value_head(states.to(value_head.weight.dtype)).squeeze(-1).float()


def token_columns(
    networks: tuple[Network, Network | None, Network | None],
    prompt_ids: list[list[int]],
    samples: "Completions",
    accelerator: Accelerator,
    config: SPOConfig,
) -> list[dict[str, Any]]:
    """What policy, reference and critic say about every token: a record of columns per row.

    Log-probs and entropies recorded while sampling are taken as they are, unless
    `rollout_logprobs` asks for a pass of their own. A network that does not exist leaves None.
    """
    policy, reference, critic = networks

    def scored(network: Network | None, *what: str):
        if network is None:
            return [[None] * len(prompt_ids)] * len(what)
        return score_rows(network, what, prompt_ids, samples.token_ids, accelerator, config)

    if samples.token_entropies is None or config.rollout_logprobs == "scoring":
        logprobs, entropies = scored(policy, "logprobs", "entropies")
    else:
        logprobs, entropies = samples.token_logprobs, samples.token_entropies
    (logprobs_ref,) = scored(reference, "logprobs")
    (values,) = scored(critic, "values")
    columns = {
        "prompt_ids": prompt_ids,
        "token_ids": samples.token_ids,
        "truncated": samples.truncated,
        "token_logprobs_old": logprobs,
        "token_entropies": entropies,
        "token_logprobs_ref": logprobs_ref,
        "token_values": values,
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@torch.no_grad()
def score_rows(
    network: Network,
    what: Sequence[Literal["logprobs", "entropies", "values"]],
    prompt_ids: list[list[int]],
    token_ids: list[list[int]],
    accelerator: Accelerator,
    config: SPOConfig,
) -> list[list[np.ndarray]]:
    """One forward pass of a network over all rows, without gradient.

    Returns a list per name in `what`, holding one float32 array (length of the completion,) per
    row.
    """
    token_rows = TokenRows(prompt_ids, token_ids, config.share_prompts)
    lengths = token_rows.lengths
    scored = [[np.zeros(n, np.float32) for n in lengths] for _ in what]
    network.train(False)
    with network.active() as decoder, accelerator.autocast():
        for batch in token_rows.micro_batches(
            np.flatnonzero(lengths),
            config.per_device_train_batch_size,
            config.max_tokens_per_micro_batch,
            accelerator.device,
        ):
            states = hidden_states(decoder, batch)
            if "values" in what:
                flat = {"values": token_values(network.head, states)}
            else:
                names = ("logprobs", "entropies")
                flat = dict(zip(names, _score_tokens(network, states, batch, config), strict=True))
            for name, columns in zip(what, scored, strict=True):
                parts = np.split(flat[name].cpu().numpy(), np.cumsum(lengths[batch.rows])[:-1])
                for row, part in zip(batch.rows, parts, strict=True):
                    columns[row] = part
    return scored


def _score_tokens(network: Network, states: Tensor, batch: MicroBatch, config: SPOConfig):
    return token_logprobs_and_entropies(
        states, network.head, batch.targets, config.temperature, config.logits_chunk_size
    )


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
