"""The policy reads the reference before the prompt -> inputs that say what it then thinks.

A language model that is told a solution finds the tokens of a right way likely, and those that
leave it unlikely. One pass, no training, any language.

Axes: B completions, T completion tokens.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spo.config import SPOConfig
from spo.data import ToolSchemas, tokenize_prompts
from spo.rollouts import Rollouts, pad_rows
from spo.values.surprisal import MAX_SURPRISAL, NUM_FEATURES, of_the_path, surprisal_features

Score = Callable[[list[list[int]], list[list[int]]], tuple[list[np.ndarray], list[np.ndarray]]]
"""(prompt ids, completion ids) of each row -> log-probs and entropies of its completion, ragged."""


def with_reference(prompt: str | list[dict], reference: str | None, wording: str):
    """The prompt with the reference before it, at the beginning of a chat's last message.

    >>> with_reference("1+2=", "3", "The answer is {reference}.\\n")
    'The answer is 3.\\n1+2='
    """
    if reference is None:
        return prompt
    told = wording.replace("{reference}", reference)
    if isinstance(prompt, str):
        return told + prompt
    *before, last = prompt
    if last["role"] == "assistant" and before:  # it is continued: its words follow the question
        return [*with_reference(before, reference, wording), last]
    return [*before, last | {"content": told + last["content"]}]


def prompts_with_references(
    rollouts: Rollouts, processing_class: Any, args: SPOConfig, tools: ToolSchemas | None = None
) -> list[list[int]]:
    """Token ids of each completion's prompt with its reference, through the chat template where
    there is one."""
    prompts = [
        with_reference(prompt, text, args.value_reference_prompt)
        for prompt, text in zip(rollouts.columns["prompt"], rollouts.references, strict=True)
    ]
    return tokenize_prompts(prompts, rollouts.columns, processing_class, args, tools)


class HintInputs:
    """Surprisal of the path under the hint, as `surprisal_features` has it, and what the hint
    changed: last, largest and log(1 + sum) of the log-ratio down and of that up, in units of 2
    nats. Without a reference the hint changes nothing, and a flag says so.

    Args:
        tokenize: `prompts_with_references`.
        score: a pass of the policy over them.
    """

    name = "hint"
    width = NUM_FEATURES + 7

    def __init__(self, tokenize: Callable[[Rollouts], list[list[int]]], score: Score):
        self.tokenize, self.score = tokenize, score

    def read(
        self, rollouts: Rollouts, segment_ids: Int[np.ndarray, "B T"]
    ) -> Float[np.ndarray, "B T 15"]:
        mask = rollouts.completion_mask
        logprobs, entropies = self.score(self.tokenize(rollouts), rollouts.ragged_token_ids)
        hinted, hinted_entropies = pad_rows(logprobs, mask), pad_rows(entropies, mask)
        known = np.array([text is not None for text in rollouts.references])
        ratio = np.where(known[:, None] & mask, hinted - rollouts.token_logprobs_old, 0.0)
        changes = [
            *of_the_path(np.clip(-ratio, 0.0, MAX_SURPRISAL)),
            *of_the_path(np.clip(ratio, 0.0, MAX_SURPRISAL)),
            np.broadcast_to(~known[:, None], mask.shape),
        ]
        found = np.where(mask[..., None], np.stack(changes, axis=-1) / 2, 0.0)
        return np.concatenate([surprisal_features(hinted, hinted_entropies, mask), found], axis=-1)
