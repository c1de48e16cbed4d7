"""Prompt ids -> completions. The only place that samples.

Sampling draws one uniform number per (seed, step, row, position) and inverts the cumulative
distribution. So a row's completion does not depend on which rows share its batch, on how many
processes there are, or on where a run was resumed.

The key-value cache of a prompt is computed once and shared by its completions; finished rows
leave the batch.
"""

from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from spo.models import decoder, transformer
from spo.prefill import SharedPrompts
from spo.scoring import logprobs_and_entropies

CACHED_NUMBERS = 2**16
"""Float32 numbers whose temporaries a core keeps: 256 KiB each."""


@dataclass(frozen=True)
class Sampling:
    """How to sample; temperature 0 takes the most likely token."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Completions:
    """Ragged, one entry per row.

    Attributes:
        token_ids: sampled tokens, the end token included.
        token_logprobs, token_entropies: of the full distribution at the sampling temperature;
            None where something else than `sample` made the completions.
        truncated: the row reached the length limit without an end token.
        prompt_ids: the prompts as they were completed, where they differ from those asked for.
        columns: further columns for the reward functions.
    """

    token_ids: list[list[int]]
    token_logprobs: list[list[float]] | None
    token_entropies: list[list[float]] | None
    truncated: list[bool]
    prompt_ids: list[list[int]] | None = None
    columns: dict[str, list] = field(default_factory=dict)


def uniforms(seed: int, step: int, rows: np.ndarray, length: int) -> Float[np.ndarray, "b T"]:
    """The random numbers of the given rows: a function of (seed, step, row, position) alone."""
    return np.stack([np.random.default_rng([seed, step, row]).random(length) for row in rows])


@torch.no_grad()
def sample(
    model: PreTrainedModel | PeftModel,
    prompt_ids: list[list[int]],
    noise: Float[np.ndarray, "b T"],
    sampling: Sampling,
    max_rows: int | None = None,
) -> Completions:
    """Complete each row's prompt; equal prompts share their prefill.

    Args:
        model: a causal language model in eval mode.
        noise: `uniforms`, at least (b, max_new_tokens).
        max_rows: rows in flight at one time; None: all of them.
    """
    max_rows = max_rows or max(len(prompt_ids), 1)
    parts = [
        _sample_batch(model, prompt_ids[i : i + max_rows], noise[i : i + max_rows], sampling)
        for i in range(0, len(prompt_ids), max_rows)
    ]
    fields = ("token_ids", "token_logprobs", "token_entropies", "truncated")
    return Completions(*(list(chain(*(getattr(part, f) for part in parts))) for f in fields))


def _sample_batch(model, prompt_ids, noise, sampling: Sampling) -> Completions:
    """Decode a batch token by token until every row has ended."""
    device = model.device
    prompts = SharedPrompts.build(prompt_ids, device)
    states, cache = prompts.run(decoder(model))
    logits = _next_token_logits(model, states)[prompts.of_row]
    attention_mask = prompts.row_mask
    positions = attention_mask.sum(1)
    noise = torch.from_numpy(noise).to(device, torch.float32)
    eos = torch.tensor(sampling.eos_token_ids, device=device)
    num_rows, limit = len(prompt_ids), sampling.max_new_tokens
    tokens = torch.zeros(num_rows, limit, dtype=torch.long, device=device)
    logprobs = torch.zeros(num_rows, limit, device=device)
    entropies = torch.zeros(num_rows, limit, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # the rows still in the batch

    for t in range(limit):
        chosen, chosen_logprobs, chosen_entropies = _choose(logits, noise[rows, t], sampling)
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
            cache.batch_select_indices(running.nonzero().squeeze(1))
            rows, chosen, positions = rows[running], chosen[running], positions[running]
            attention_mask = attention_mask[running]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], 1)
        states = decoder(model)(
            input_ids=chosen[:, None],
            attention_mask=attention_mask,
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits = _next_token_logits(model, states)
        positions = positions + 1

    def ragged(array):
        return [row[:n] for row, n in zip(array.tolist(), lengths.tolist(), strict=True)]

    return Completions(ragged(tokens), ragged(logprobs), ragged(entropies), (~ended).tolist())


def _next_token_logits(model, states: Float[Tensor, "b S H"]) -> Float[Tensor, "b V"]:
    """One product of two matrices: behind a slice of three dimensions the head's weight would be
    copied for every row."""
    return transformer(model).get_output_embeddings()(states[:, -1].contiguous())


def _choose(logits: Float[Tensor, "b V"], noise: Float[Tensor, " b"], sampling: Sampling):
    """One token per row, with its log-prob and the entropy it was chosen under, (b,) each.

    On a CPU a few rows at a time, so that what is made of them stays in its cache.
    """
    num_rows, vocab_size = logits.shape
    on_cpu = logits.device.type == "cpu"
    size = max(CACHED_NUMBERS // vocab_size, 1) if on_cpu else num_rows
    parts = zip(logits.split(size), noise.split(size), strict=True)
    return map(torch.cat, zip(*(_choose_rows(*part, sampling) for part in parts), strict=True))


def _choose_rows(logits: Float[Tensor, "b V"], noise: Float[Tensor, " b"], sampling: Sampling):
    logits = logits.float() / (sampling.temperature or 1.0)
    if sampling.temperature == 0:
        chosen = logits.argmax(-1)
    else:
        chosen = invert_cdf(_truncate(logits, sampling), noise)
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


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Leave only the top-k or nucleus tokens."""
    if sampling.top_k:
        logits = TopKLogitsWarper(min(sampling.top_k, logits.shape[-1]))(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits


def external_completions(
    output: dict[str, list], num_prompts: int, eos_ids: tuple[int, ...]
) -> Completions:
    """What a `rollout_func` returned, checked; log-probs and entropies are left to scoring."""
    columns = {k: v for k, v in output.items() if k not in ("prompt_ids", "completion_ids")}
    columns.pop("logprobs", None)
    prompt_ids = [list(ids) for ids in output["prompt_ids"]]
    token_ids = [list(ids) for ids in output["completion_ids"]]
    if not len(prompt_ids) == len(token_ids) == num_prompts:
        raise ValueError(
            f"rollout_func got {num_prompts} prompts and returned {len(prompt_ids)} prompt_ids and "
            f"{len(token_ids)} completion_ids; one of each per prompt is needed."
        )
    if not all(prompt_ids):
        raise ValueError(
            "rollout_func returned empty prompt_ids: the first token needs one before it."
        )
    truncated = [not (ids and ids[-1] in eos_ids) for ids in token_ids]
    return Completions(token_ids, None, None, truncated, prompt_ids, columns)


def completion_texts(
    processing_class, token_ids: list[list[int]]
) -> tuple[list[str], list[list[int]]]:
    """Text of each completion without special tokens, and where in it each token ends.

    Ends are counted in UTF-8 bytes and fall between characters: a character spread over several
    tokens belongs to the last of them.
    """
    texts = processing_class.batch_decode(token_ids, skip_special_tokens=True)
    distinct = sorted({i for ids in token_ids for i in ids})
    pieces = (
        processing_class.batch_decode([[i] for i in distinct], skip_special_tokens=True)
        if distinct
        else []  # batch_decode([]) is [""]
    )
    piece_of = dict(zip(distinct, pieces, strict=True))
    ends = []
    for ids, text in zip(token_ids, texts, strict=True):
        if "".join(piece_of[i] for i in ids) == text and "\ufffd" not in text:
            ends.append(np.cumsum([len(piece_of[i].encode()) for i in ids], dtype=int).tolist())
        else:
            ends.append(_ends_in_context(processing_class, ids, text))
    return texts, ends


def _ends_in_context(processing_class, ids: list[int], text: str) -> list[int]:
    """Token ends where tokens cannot be decoded alone: decode each behind the few before it.

    What is decoded twice is ids[context:done], whose text is known; a token that leaves a
    character unfinished (U+FFFD) waits for the token that finishes it.
    """

    def decode(start, stop):
        return processing_class.decode(ids[start:stop], skip_special_tokens=True)

    ends, end, context, done = [], 0, 0, 0
    limit = len(text.encode())
    for count in range(1, len(ids) + 1):
        known, seen = decode(context, done), decode(context, count)
        if len(seen) > len(known) and not seen.endswith("\ufffd"):
            end = min(end + len(seen[len(known) :].encode()), limit)
            context, done = done, count
        ends.append(end)
    if ends:
        ends[-1] = limit
    return ends


def eos_token_ids(model: PreTrainedModel | PeftModel, processing_class) -> tuple[int, ...]:
    """Every token that ends a completion: the model's generation config's and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, processing_class.eos_token_id] if i is not None}))
