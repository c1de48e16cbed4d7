"""Prompt ids -> completions. The only place that samples.

Sampling draws one uniform number per (seed, step, row, position) and inverts the cumulative
distribution. So a row's completion does not depend on which rows share its batch, on how many
processes there are, or on where a run was resumed.

The key-value cache of a prompt is computed once and shared by its completions; finished rows
leave the batch. On an accelerator nothing is read back from it but every eighth token, when it is
asked which rows have ended.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spo.generation.decoder import PlainDecoder, is_plain
from spo.generation.engine import SamplingParams
from spo.generation.processors import RowProcessors, of_distribution
from spo.networks.network import Network
from spo.networks.prefill import DecodeStep, SharedPrompts, select_rows
from spo.networks.room import RowsInFlight
from spo.prompts import PromptBatch
from spo.rollouts import Completions

Decode = Callable[[DecodeStep], Float[Tensor, "b V"]]

CACHED_NUMBERS = 2**16
"""Float32 numbers whose temporaries a core keeps: 256 KiB each."""

LOOK_EVERY = 8
"""Tokens after which an accelerator is asked which rows have ended; a CPU is asked each time."""


class Sampler:
    """The policy as its own generator.

    Weights of 16 bits have no room for a small adapter: much of it is rounded away when it is
    merged into them. What samples then is not quite what is trained, and its log-probs count as
    another engine's (`spo.mismatch`); old log-probs and entropies come from a pass of their own.

    Args:
        policy: the network that samples.
        seed: of all params.
        max_rows: rows in flight at one time; None: all of them. Out of memory halves it for good.
        merge: whether its adapter is merged into the weights meanwhile.
    """

    def __init__(self, policy: Network, seed: int, max_rows: int | None = None, merge: bool = True):
        self.policy, self.seed, self.merge = policy, seed, merge
        self.in_flight, self.is_plain = RowsInFlight(max_rows), is_plain(policy, merge)

    def __call__(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        noise = uniforms(self.seed, step, prompts.rows, params.max_new_tokens)
        self.policy.train(False)
        with self.policy.merged(self.merge) as merged:
            decode = PlainDecoder(self.policy, merged) if self.is_plain else None
            samples = sample(self.policy, prompts.prompt_ids, noise, params, self.in_flight, decode)
        if merged and self.policy.in_16_bits:
            return Completions(
                samples.prompt_ids,
                samples.token_ids,
                samples.truncated,
                token_logprobs_sampler=samples.token_logprobs,
            )
        return samples

    def load(self, policy: Network) -> None:
        """It samples from the policy as it is."""


def uniforms(seed: int, step: int, rows: np.ndarray, length: int) -> Float[np.ndarray, "b T"]:
    """The random numbers of the given rows: a function of (seed, step, row, position) alone."""
    return np.stack([np.random.default_rng([seed, step, row]).random(length) for row in rows])


@torch.no_grad()
def sample(
    network: Network,
    prompt_ids: list[list[int]],
    noise: Float[np.ndarray, "b T"],
    params: SamplingParams,
    in_flight: RowsInFlight | None = None,
    decode: Decode | None = None,
) -> Completions:
    """Complete each row's prompt; equal prompts share their prefill.

    Args:
        network: a policy, switched on and in eval mode.
        noise: `uniforms`, at least (b, max_new_tokens).
        in_flight: how many rows at one time; None: all of them.
        decode: a step of one token -> logits; None: the network itself.
    """
    decode = decode or partial(network, want="next_logits")

    def complete(rows: slice):
        return _sample_batch(network, decode, prompt_ids[rows], noise[rows], params)

    parts = list((in_flight or RowsInFlight()).parts(len(prompt_ids), complete))
    columns = (list(chain(*column)) for column in zip(*parts, strict=True))
    return Completions(prompt_ids, *(columns if parts else ([], [], [], [])))


def _sample_batch(network: Network, decode: Decode, prompt_ids, noise, params: SamplingParams):
    """Decode a batch token by token until every row has ended: token ids, truncated, log-probs and
    entropies, ragged."""
    device = network.device
    prompts = SharedPrompts.build(prompt_ids, device)
    step = prompts.first_step(network.decoder_config)
    logits = network(step, "next_logits")[prompts.of_row]
    cache, attention_mask = step.cache, prompts.row_mask
    select_rows(cache, prompts.of_row)
    positions = prompts.row_lengths
    noise = torch.from_numpy(noise.astype(np.float32)).to(device)
    eos = torch.tensor(params.eos_token_ids, device=device)
    num_rows, limit = len(prompt_ids), params.max_new_tokens
    tokens = torch.zeros(num_rows, limit, dtype=torch.long, device=device)
    logprobs = torch.zeros(num_rows, limit, device=device)
    entropies = torch.zeros(num_rows, limit, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # the rows still in the batch
    look_every = 1 if device.type == "cpu" else LOOK_EVERY
    of_rows = RowProcessors(prompt_ids, params, device)

    for t in range(limit):
        shaped = of_rows(logits, rows, tokens[:, :t])
        chosen, logprobs[rows, t], entropies[rows, t] = _choose(
            logits, shaped, noise[rows, t], params
        )
        tokens[rows, t] = chosen
        ends, before = torch.isin(chosen, eos), ended[rows]
        lengths[rows] = torch.where(ends & ~before, t + 1, lengths[rows])
        ended[rows] = before | ends
        if t + 1 == limit:
            break
        if (t + 1) % look_every == 0:
            running = ~ended[rows]
            num_running = int(running.sum())
            if not num_running:
                break
            if num_running <= 0.875 * len(rows):  # a compaction costs one copy of the cache
                kept = running.nonzero().squeeze(1)
                select_rows(cache, kept)
                rows, chosen, positions = rows[kept], chosen[kept], positions[kept]
                attention_mask = None if attention_mask is None else attention_mask[kept]
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], 1)
        step = DecodeStep(chosen[:, None], attention_mask, positions[:, None], cache)
        logits = decode(step)
        positions = positions + 1

    def ragged(array):
        return [row[:n] for row, n in zip(array.tolist(), lengths.tolist(), strict=True)]

    return ragged(tokens), (~ended).tolist(), ragged(logprobs), ragged(entropies)


def _choose(
    logits: Float[Tensor, "b V"],
    shaped: Float[Tensor, "b V"],
    noise: Float[Tensor, " b"],
    params: SamplingParams,
):
    """One token per row from the shaped logits, with its log-prob and the entropy by the plain
    ones, (b,) each.

    On a CPU a few rows at a time, so that what is made of them stays in its cache.
    """
    num_rows, vocab_size = logits.shape
    on_cpu = logits.device.type == "cpu"
    size = max(CACHED_NUMBERS // vocab_size, 1) if on_cpu else num_rows
    plain = logits.split(size)
    shapes = [None] * len(plain) if shaped is logits else shaped.split(size)
    parts = zip(plain, shapes, noise.split(size), strict=True)
    return map(torch.cat, zip(*(_choose_rows(*part, params) for part in parts), strict=True))


def _choose_rows(
    logits: Float[Tensor, "b V"],
    shaped: Float[Tensor, "b V"] | None,
    noise: Float[Tensor, " b"],
    params: SamplingParams,
):
    """With z the logits over the temperature less their maximum, one exponential e = exp z gives
    the cumulative sums to search, log π = z − ln Σ e and the entropy ln Σ e − Σ e z / Σ e."""
    temperature = params.temperature or 1.0
    z = logits.float() / temperature
    z.sub_(z.amax(-1, keepdim=True))
    z.clamp_(min=torch.finfo(z.dtype).min)  # exp(−inf) · −inf would be NaN
    weights = z.exp()
    if params.temperature == 0:
        chosen, total = (logits if shaped is None else shaped).argmax(-1), weights.sum(-1)
    elif shaped is None and not of_distribution(params, logits.device):
        cumulative = weights.cumsum(-1)
        chosen, total = search(cumulative, noise), cumulative[:, -1]
    else:
        kept = z if shaped is None else shaped / temperature
        kept = of_distribution(params, logits.device)(None, kept)
        chosen, total = search(kept.softmax(-1).cumsum(-1), noise), weights.sum(-1)
    logprobs = z.gather(-1, chosen[:, None]).squeeze(-1) - total.log()
    return chosen, logprobs, total.log() - weights.mul_(z).sum(-1) / total


def search(cumulative: Float[Tensor, "b V"], noise: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The token at which the cumulative weight first exceeds that share of the whole.

    >>> search(torch.tensor([[1.0, 2.0]]).expand(2, 2), torch.tensor([0.4, 0.6]))
    tensor([0, 1])
    """
    # the last entry stands for 1 whatever was lost to rounding; tokens of weight 0 are skipped
    total = cumulative[:, -1:]
    target = (noise[:, None] * total).clamp(max=total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp(max=cumulative.shape[-1] - 1)  # NaN: some token, the loss then stops
