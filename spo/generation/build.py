"""SPOConfig -> how to sample, and the generator that does."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from spo.config import SPOConfig
from spo.generation.engine import Generator, SamplingParams
from spo.generation.processors import check_processors
from spo.generation.rollout_func import RolloutFunc
from spo.generation.sampler import Sampler
from spo.generation.text import eos_token_ids
from spo.generation.tool_chat import ToolChat
from spo.generation.toolbox import Toolbox
from spo.generation.tools import ToolUse
from spo.generation.vllm import VllmServer, check_sampling
from spo.generation.vllm_client import Client
from spo.generation.vllm_colocate import VllmColocate
from spo.networks.network import Network
from spo.run.folder import VLLM_FOLDER


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
    toolbox: Toolbox | None,
    trainer: Any,
    policy: Network,
    args: SPOConfig,
) -> Generator:
    """An engine, or a person's function, which is handed the trainer; with tools, what goes on
    behind their answers."""
    if rollout_func is not None and args.use_vllm:
        raise ValueError("rollout_func and use_vllm both sample; leave one of them out.")
    if rollout_func is not None and toolbox is not None:
        raise ValueError(
            "rollout_func runs its tools itself and returns env_mask: give it, or tools and "
            "environment_factory, not both."
        )
    if rollout_func is not None:
        return RolloutFunc(rollout_func, trainer)
    engine = build_engine(policy, Path(trainer.output_dir), args)
    if toolbox is None:
        return engine
    ends = eos_token_ids(policy.model, trainer.processing_class)
    chat = ToolChat(trainer.processing_class, ends, args.chat_template_kwargs or {})
    together = nullcontext if args.use_vllm else policy.gathered
    return ToolUse(engine, toolbox, chat, args.max_tool_calling_iterations, together)


def build_engine(policy: Network, output_dir: Path, args: SPOConfig) -> Generator:
    """The policy itself, or vLLM, which reads adapters in the run's folder."""
    if not args.use_vllm:
        merge = args.merge_adapter
        return Sampler(policy, args.seed, args.per_device_generation_batch_size, merge)
    check_sampling(args.generation_kwargs)
    adapters = output_dir / VLLM_FOLDER
    if args.vllm_mode == "colocate":
        return VllmColocate(policy, args, adapters)
    return VllmServer(policy, args.seed, Client(args.vllm_url, args.vllm_server_timeout), adapters)
