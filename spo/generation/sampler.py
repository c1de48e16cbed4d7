"""Prompt ids -> completions. The only place that samples.

Sampling draws one uniform number per (seed, step, row, position) and inverts the cumulative
distribution. So a row's completion does not depend on which rows share its batch, on how many
processes there are, or on where a run was resumed.

The key-value cache of a prompt is computed once and shared by its completions; finished rows
leave the batch.
"""

from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spo.generation.engine import SamplingParams
from spo.generation.processors import RowProcessors, of_distribution
from spo.networks.logprobs import logprobs_and_entropies
from spo.networks.network import Network
from spo.networks.prefill import DecodeStep, SharedPrompts, select_rows
from spo.prompts import PromptBatch
from spo.rollouts import Completions

CACHED_NUMBERS = 2**16
"""Float32 numbers whose temporaries a core keeps: 256 KiB each."""


class Sampler:
    """The policy as its own generator.

    Args:
        policy: the network that samples.
        seed: of all params.
        max_rows: rows in flight at one time; None: all of them.
        merge: whether its adapter is merged into the weights meanwhile.
    """

    def __init__(self, policy: Network, seed: int, max_rows: int | None = None, merge: bool = True):
        self.policy, self.seed, self.max_rows, self.merge = policy, seed, max_rows, merge

    def __call__(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        noise = uniforms(self.seed, step, prompts.rows, params.max_new_tokens)
        self.policy.train(False)
        with self.policy.merged(self.merge):
            return sample(self.policy, prompts.prompt_ids, noise, params, self.max_rows)

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
    max_rows: int | None = None,
) -> Completions:
    """Complete each row's prompt; equal prompts share their prefill.

    Args:
        network: a policy, switched on and in eval mode.
        noise: `uniforms`, at least (b, max_new_tokens).
        max_rows: rows in flight at one time; None: all of them.
    """
    max_rows = max_rows or max(len(prompt_ids), 1)
    parts = [
        _sample_batch(network, prompt_ids[i : i + max_rows], noise[i : i + max_rows], params)
        for i in range(0, len(prompt_ids), max_rows)
    ]
    columns = (list(chain(*column)) for column in zip(*parts, strict=True))
    return Completions(prompt_ids, *(columns if parts else ([], [], [], [])))


def _sample_batch(network: Network, prompt_ids, noise, params: SamplingParams):
    """Decode a batch token by token until every row has ended: token ids, truncated, log-probs and
    entropies, ragged."""
    device = network.device
    prompts = SharedPrompts.build(prompt_ids, device)
    step = prompts.first_step(network.decoder_config)
    logits = network(step, "next_logits")[prompts.of_row]
    cache = step.cache
    select_rows(cache, prompts.of_row)
    attention_mask = prompts.row_mask
    positions = attention_mask.sum(1)
    noise = torch.from_numpy(noise).to(device, torch.float32)
    eos = torch.tensor(params.eos_token_ids, device=device)
    num_rows, limit = len(prompt_ids), params.max_new_tokens
    tokens = torch.zeros(num_rows, limit, dtype=torch.long, device=device)
    logprobs = torch.zeros(num_rows, limit, device=device)
    entropies = torch.zeros(num_rows, limit, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # the rows still in the batch
    of_rows = RowProcessors(prompt_ids, params, device)

    for t in range(limit):
        shaped = of_rows(logits, rows, tokens[:, :t])
        chosen, chosen_logprobs, chosen_entropies = _choose(logits, shaped, noise[rows, t], params)
        tokens[rows, t] = chosen
        logprobs[rows, t] = chosen_logprobs
        entropies[rows, t] = chosen_entropies
        just_ended = torch.isin(chosen, eos) & ~ended[rows]
        lengths[rows[just_ended]] = t + 1
        ended[rows[just_ended]] = True
        running = ~ended[rows]
        num_running = int(running.sum())
        if not num_running or t + 1 == limit:
            break
        if num_running <= 0.875 * len(rows):  # a compaction costs one copy of the cache
            select_rows(cache, running.nonzero().squeeze(1))
            rows, chosen, positions = rows[running], chosen[running], positions[running]
            attention_mask = attention_mask[running]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], 1)
        step = DecodeStep(chosen[:, None], attention_mask, positions[:, None], cache)
        logits = network(step, "next_logits")
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
    temperature = params.temperature or 1.0
    logits = logits.float() / temperature
    shaped = logits if shaped is None else shaped / temperature
    if params.temperature == 0:
        chosen = shaped.argmax(-1)
    else:
        chosen = invert_cdf(of_distribution(params, logits.device)(None, shaped), noise)
    return chosen, *logprobs_and_entropies(logits, chosen)


def invert_cdf(logits: Float[Tensor, "b V"], noise: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The token at which the cumulative probability first exceeds the uniform number.

    >>> invert_cdf(torch.tensor([[0.0, 0.0]]).expand(2, 2), torch.tensor([0.4, 0.6]))
    tensor([0, 1])
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    # the last entry stands for 1 whatever was lost to rounding; tokens of probability 0 are skipped
    target = (noise[:, None] * cumulative[:, -1:]).clamp(
        max=cumulative[:, -1:].nextafter(torch.zeros_like(cumulative[:, -1:]))
    )
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp(max=logits.shape[-1] - 1)  # NaN logits: some token, the loss then stops
