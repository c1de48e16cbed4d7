"""Sampling settings -> Transformers' logits processors, in the order in which `generate` has them.

Those of a row read what it holds so far and come before the temperature; those of a distribution
come after it. They change what is chosen, never the log-probs that are recorded.

Axes: b rows still in the batch, t tokens sampled so far, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from spo.generation.engine import SamplingParams


def of_distribution(params: SamplingParams, device: torch.device | str) -> LogitsProcessorList:
    """What cuts the distribution off, for logits over the temperature."""
    more = params.generation_kwargs
    cuts = LogitsProcessorList()
    if more.get("top_h") is not None:
        cuts.append(TopHLogitsWarper(more["top_h"]))
    if params.top_k:
        cuts.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        cuts.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        cuts.append(MinPLogitsWarper(params.min_p))
    if more.get("typical_p", 1) < 1:
        cuts.append(TypicalLogitsWarper(more["typical_p"]))
    if more.get("epsilon_cutoff"):
        cuts.append(EpsilonLogitsWarper(more["epsilon_cutoff"]))
    if more.get("eta_cutoff"):
        cuts.append(EtaLogitsWarper(more["eta_cutoff"], device=str(device)))
    return cuts


def of_rows(
    params: SamplingParams, prompt_length: int, device: torch.device | str
) -> LogitsProcessorList:
    """What the tokens of a row, its prompt's among them, make of its logits."""
    more, ends = params.generation_kwargs, list(params.eos_token_ids)
    device = str(device)
    processors = LogitsProcessorList()
    if more.get("sequence_bias") is not None:
        processors.append(SequenceBiasLogitsProcessor(more["sequence_bias"]))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if more.get("no_repeat_ngram_size"):
        processors.append(NoRepeatNGramLogitsProcessor(more["no_repeat_ngram_size"]))
    if more.get("bad_words_ids") is not None:
        processors.append(NoBadWordsLogitsProcessor(more["bad_words_ids"], ends))
    if more.get("min_new_tokens") and ends:
        number = more["min_new_tokens"]
        processors.append(MinNewTokensLengthLogitsProcessor(prompt_length, number, ends, device))
    if more.get("exponential_decay_length_penalty") is not None and ends:
        decay = tuple(more["exponential_decay_length_penalty"])
        processors.append(ExponentialDecayLengthPenalty(decay, ends, prompt_length))
    if more.get("suppress_tokens") is not None:
        processors.append(SuppressTokensLogitsProcessor(more["suppress_tokens"], device))
    if more.get("begin_suppress_tokens") is not None:
        first = more["begin_suppress_tokens"]
        processors.append(SuppressTokensAtBeginLogitsProcessor(first, prompt_length, device))
    return processors


def check_processors(params: SamplingParams) -> None:
    """ValueError where Transformers refuses a setting."""
    try:
        of_distribution(params, "cpu")
        of_rows(params, 1, "cpu")
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"generation_kwargs or a sampling setting is refused: {reason}."
        ) from error


class RowProcessors:
    """`of_rows` for a batch of prompts of many lengths: Transformers' processors take rectangles
    without padding, so rows whose prompts are equally long go through them together."""

    def __init__(self, prompt_ids: list[list[int]], params: SamplingParams, device: torch.device):
        lengths = [len(ids) for ids in prompt_ids]
        self.by_length = {n: of_rows(params, n, device) for n in {*lengths}}
        self.any = any(self.by_length.values())
        self.lengths = torch.tensor(lengths, device=device)
        longest = max(lengths, default=0)
        padded = [[0] * (longest - len(ids)) + list(ids) for ids in prompt_ids]
        self.prompts = torch.tensor(padded, device=device)

    def __call__(
        self, logits: Float[Tensor, "b V"], rows: Int[Tensor, " b"], tokens: Int[Tensor, "N t"]
    ) -> Float[Tensor, "b V"]:
        """The logits to choose from; `rows` are the places of these rows in the batch of N."""
        if not self.any:
            return logits
        shaped = logits.float()
        lengths = self.lengths[rows]
        for length in lengths.unique().tolist():
            here = (lengths == length).nonzero().squeeze(1)
            prompts = self.prompts[rows[here], self.prompts.shape[1] - length :]
            ids = torch.cat([prompts, tokens[rows[here]]], dim=1)
            shaped = shaped.index_copy(0, here, self.by_length[length](ids, shaped[here]))
        return shaped
