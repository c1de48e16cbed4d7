"""What a generator returns: one process's completions, ragged."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spo.prompts import PromptBatch  # it needs the package datasets, which an inspector lacks


@dataclass(frozen=True)
class Completions:
    """What a generator makes of one process's prompts: ragged, one entry per row.

    Attributes:
        prompt_ids: the prompts as they were completed.
        token_ids: sampled tokens, the end token included.
        truncated: the row reached the length limit without an end token.
        token_logprobs, token_entropies: of the policy's full distribution at the sampling
            temperature; None where the trainer's own pass has to find them.
        action_mask: True where the policy chose the token, False on a tool's or environment's;
            None: it chose all of them.
        token_logprobs_sampler: what another engine than the trainer's said of its samples.
        columns: further columns for the reward functions.
        prompts: the prompts as they were shown; None: as they were given.
        messages: the completion as chat messages, tools' answers included; None: one message of
            the assistant, or text.
        tool_calls, tool_failures: how many tools were called, and how many of them failed; None:
            there are none to call.
    """

    prompt_ids: list[list[int]]
    token_ids: list[list[int]]
    truncated: list[bool]
    token_logprobs: list[list[float]] | None = None
    token_entropies: list[list[float]] | None = None
    action_mask: list[list[bool]] | None = None
    token_logprobs_sampler: list[list[float]] | None = None
    columns: dict[str, list] = field(default_factory=dict)
    prompts: "PromptBatch | None" = None
    messages: list[list[dict[str, Any]]] | None = None
    tool_calls: list[int] | None = None
    tool_failures: list[int] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens that the policy chose, per row."""
        if self.action_mask is None:
            return [len(ids) for ids in self.token_ids]
        return [sum(row) for row in self.action_mask]
