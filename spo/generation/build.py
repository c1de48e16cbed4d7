"""SPOConfig -> how to sample, and the generator that does."""

from collections.abc import Callable
from typing import Any

from spo.config import SPOConfig
from spo.generation.engine import Generator, SamplingParams
from spo.generation.processors import check_processors
from spo.generation.rollout_func import RolloutFunc
from spo.generation.sampler import Sampler
from spo.generation.text import eos_token_ids
from spo.networks.network import Network


def sampling_params(model: Any, processing_class: Any, args: SPOConfig) -> SamplingParams:
    """How training samples from the model; `generation_kwargs` have the last word, as in TRL."""
    given = {"top_k": args.top_k, "top_p": args.top_p, "min_p": args.min_p}
    given |= {"repetition_penalty": args.repetition_penalty}
    more = args.generation_kwargs or {}
    given |= {name: more[name] for name in given if name in more}
    params = SamplingParams(
        max_new_tokens=args.max_completion_length,
        eos_token_ids=eos_token_ids(model, processing_class),
        temperature=args.temperature,
        generation_kwargs={name: value for name, value in more.items() if name not in given},
        **given,
    )
    check_processors(params)
    return params


def build_generator(
    rollout_func: Callable[..., dict[str, list]] | None,
    trainer: Any,
    policy: Network,
    args: SPOConfig,
) -> Generator:
    """The policy itself, or a person's function, which is handed the trainer."""
    if rollout_func is not None:
        return RolloutFunc(rollout_func, trainer)
    return Sampler(policy, args.seed, args.per_device_generation_batch_size, args.merge_adapter)
