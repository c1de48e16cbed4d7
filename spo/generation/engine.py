"""The seam between training and whatever samples: prompts -> completions.

Training and evaluation share one `Generator`: the policy itself (`spo.generation.sampler`), vLLM
(`vllm`, `vllm_colocate` beside it), or a person's own function (`spo.generation.rollout_func`).
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from spo.networks.network import Network
from spo.prompts import PromptBatch
from spo.rollouts import Completions


@dataclass(frozen=True)
class SamplingParams:
    """How to sample; temperature 0 takes the most likely token.

    What is chosen from may be cut off or bent by the others, named and meant as in Transformers'
    GenerationConfig; log-probs and entropies are those of the full distribution at the temperature.
    """

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    generation_kwargs: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Generator(Protocol):
    """Completes the prompts of one process."""

    def __call__(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        """One completion per entry of `prompts`; `step` seeds the sampling."""

    def load(self, policy: Network) -> None:
        """Sample from these weights from now on; called on all processes before every step and
        evaluation. Nothing to do where the policy itself samples."""
