"""vLLM inside the training process as a `Generator`: its own copy of the base, our adapter on it.

vLLM is imported here and nowhere else, and only for `vllm_mode="colocate"`.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from packaging.requirements import Requirement

from spo.config import SPOConfig
from spo.generation.adapter import adapter_name, check_adapter, remove_adapters, write_adapter
from spo.generation.engine import SamplingParams
from spo.generation.vllm import check_loaded, completions_of, on_main, row_seeds, sampling
from spo.networks.network import Network, transformer
from spo.prompts import PromptBatch
from spo.rollouts import Completions

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max_lora_rank."""

SERVER_INSTEAD = "or run a vLLM server in an environment of its own, with vllm_mode='server'"


class VllmColocate:
    """Samples with vLLM beside the trainer, on the card of each process.

    Args:
        policy: whose adapter is sampled with.
        args: the configuration.
        folder: where adapters are written for vLLM to read.
    """

    def __init__(self, policy: Network, args: SPOConfig, folder: Path):
        check_adapter(policy)
        check_installed()
        self.policy, self.seed, self.folder = policy, args.seed, folder.absolute()
        self.sleeps = args.vllm_enable_sleep_mode
        self.adapter: Path | None = None
        self.loads, self.loaded = 0, ""
        self.llm = start(policy, args)
        self._rest()

    def load(self, policy: Network) -> None:
        """Write the adapter where the vLLM of every process finds it, under a new name."""
        before, self.adapter = self.adapter, on_main(lambda: self._write(policy))
        self.loads, self.loaded = self.loads + (self.adapter != before), adapter_name(policy)

    def __call__(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        import vllm
        from vllm.lora.request import LoRARequest

        check_loaded(self.policy, self.loaded)
        seeds = row_seeds(self.seed, step, prompts.rows)
        self._wake()
        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts.prompt_ids],
            [vllm.SamplingParams(**sampling(params, seed), detokenize=False) for seed in seeds],
            lora_request=LoRARequest(self.adapter.name, self.loads, str(self.adapter)),
            use_tqdm=False,
        )
        self._rest()
        sampled = [output.outputs[0] for output in outputs]
        token_ids = [list(completion.token_ids) for completion in sampled]
        logprobs = [
            [of_token[i].logprob for i, of_token in zip(ids, completion.logprobs, strict=True)]
            for ids, completion in zip(token_ids, sampled, strict=True)
        ]
        vocabulary = self.policy.model.config.get_text_config().vocab_size
        return completions_of(prompts.prompt_ids, token_ids, logprobs, params, vocabulary)

    def _write(self, policy: Network) -> Path:
        path = write_adapter(policy, self.folder)
        remove_adapters(self.folder, keep=path)  # all processes have sampled with the one before
        return path

    def _wake(self) -> None:
        if self.sleeps:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what the update has left goes to vLLM
            self.llm.wake_up()

    def _rest(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=1)  # weights to the host's memory, the cache is dropped


def start(policy: Network, args: SPOConfig) -> Any:
    """A vLLM engine with the policy's base."""
    import vllm

    processes = PartialState().num_processes
    if processes > 1 and args.vllm_tensor_parallel_size > 1:
        raise ValueError(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} is for a single process; "
            f"each of these {processes} has a vLLM on its card."
        )
    model = transformer(policy.model)
    if not model.config._name_or_path:
        raise ValueError(
            "vLLM reads the base model from its folder or the hub: give SPOTrainer the name of the "
            "model, not a model in memory."
        )
    given = args.model_init_kwargs or {}
    loaded = {name: given[name] for name in ("revision", "trust_remote_code") if name in given}
    if getattr(model, "is_loaded_in_4bit", False):
        loaded["quantization"] = "bitsandbytes"
    if processes > 1:
        loaded["distributed_executor_backend"] = "external_launcher"
    settings = {
        "model": model.config._name_or_path,
        "dtype": args.compute_dtype,
        "enable_lora": True,
        "max_lora_rank": max_lora_rank(policy),
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        "enable_sleep_mode": args.vllm_enable_sleep_mode,
        "max_model_len": args.vllm_max_model_length,
        "tensor_parallel_size": args.vllm_tensor_parallel_size,
        "skip_tokenizer_init": True,
    }
    try:
        return vllm.LLM(**settings, **loaded)
    except ValueError as error:
        reason = str(error).split("Value error, ")[-1].split("[type=")[0]  # of pydantic's page
        raise ValueError(f"vLLM refuses these settings: {' '.join(reason.split())}") from error


def max_lora_rank(policy: Network) -> int:
    """The smallest rank that vLLM takes and this adapter fits in.

    Raises:
        ValueError: none is large enough.
    """
    config = policy.model.peft_config[policy.adapter]
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"lora_r={rank} is above {LORA_RANKS[-1]}, the largest that vLLM takes.")


def check_installed() -> None:
    """vLLM is here and can live with this Transformers.

    Raises:
        ValueError: one sentence that says what to install.
    """
    found = importlib.metadata.packages_distributions().get("vllm")
    if not found:
        raise ValueError(
            "vllm_mode='colocate' needs vLLM in this environment: pip install 'spo[vllm]', "
            f"{SERVER_INSTEAD}."
        )
    here = importlib.metadata.version("transformers")
    for line in importlib.metadata.requires(found[0]) or []:
        wanted = Requirement(line)
        if wanted.name == "transformers" and here not in wanted.specifier:
            raise ValueError(
                f"{found[0]} {importlib.metadata.version(found[0])} asks for "
                f"transformers{wanted.specifier}, and {here} is installed: install one that fits, "
                f"{SERVER_INSTEAD}."
            )
