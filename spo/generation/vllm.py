"""A vLLM server as a `Generator`: the adapter goes there after every update, completions come back.

The adapter is sent under a name made of its weights, so a server can sample from exactly these or
not at all: one that was restarted does not know the name and is sent the adapter again. It also
keeps cached prompts of different adapters apart. (vLLM 0.32 has `load_inplace` for an adapter that
keeps its name; it then reads the file anew at every token, and dies where that is gone.)

Trainer and server share a folder, not a Python environment: docs/engines.md.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from spo.errors import EngineError
from spo.generation.adapter import adapter_name, check_adapter, remove_adapters, write_adapter
from spo.generation.engine import SamplingParams
from spo.generation.vllm_client import Client, NotFoundError
from spo.networks.network import Network
from spo.prompts import PromptBatch
from spo.rollouts import Completions

IN_FLIGHT = 256
"""Requests that one process has open at a time; vLLM batches them itself."""

ATTEMPTS = 5
"""At one completion, by a server that answers and yet does not give it."""

GENERATION_KWARGS = ("top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens")
"""What generation_kwargs may hold here."""

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank R "
    "--logprobs-mode processed_logprobs"
)


class VllmServer:
    """Asks a server for the completions of one process's prompts.

    Args:
        policy: whose adapter is sent.
        seed: of all sampling.
        client: the server.
        folder: where adapters are written, the same path for trainer and server.
    """

    def __init__(self, policy: Network, seed: int, client: Client, folder: Path):
        check_adapter(policy)
        self.policy, self.seed, self.client = policy, seed, client
        self.folder = folder.absolute()
        self.adapter: Path | None = None
        self.loaded, self.checked = "", False
        self._resending = threading.Lock()

    def load(self, policy: Network) -> None:
        """Write the adapter and have the server read it, on the main process; all wait for it."""
        self.adapter, self.loaded = on_main(lambda: self._send_new(policy)), adapter_name(policy)

    def __call__(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        check_loaded(self.policy, self.loaded)
        seeds, name = row_seeds(self.seed, step, prompts.rows), self.adapter.name
        if not self.checked and len(prompts):
            self._check_logprobs(name, prompts.prompt_ids[0], params)

        def complete(row: int) -> dict[str, Any]:
            body = {"model": name, "prompt": prompts.prompt_ids[row], "return_token_ids": True}
            return self._complete(body | sampling(params, seeds[row]))

        with ThreadPoolExecutor(min(IN_FLIGHT, max(len(prompts), 1))) as pool:
            choices = list(pool.map(complete, range(len(prompts))))
        token_ids = [choice["token_ids"] for choice in choices]
        logprobs = [choice["logprobs"]["token_logprobs"] for choice in choices]
        vocabulary = self.policy.model.config.get_text_config().vocab_size
        return completions_of(prompts.prompt_ids, token_ids, logprobs, params, vocabulary)

    def _send_new(self, policy: Network) -> Path:
        """Send an adapter that the server may not have; the one before is taken from it."""
        before = self.adapter
        path = write_adapter(policy, self.folder)
        if path == before:
            return path
        self._send(path)
        if before is not None:
            self._forget(before.name)
        remove_adapters(self.folder, keep=path)
        return path

    def _send(self, path: Path) -> None:
        """Have the server read the adapter from `path`, unless it has."""
        if self._adapters().get(path.name) == str(path):
            return
        self._forget(path.name)  # of another run's folder, which may be gone tomorrow
        try:
            body = {"lora_name": path.name, "lora_path": str(path)}
            self.client.ask("/v1/load_lora_adapter", body)
        except NotFoundError as error:  # no such route, or no such folder
            raise EngineError(
                f"{error}. vLLM has to be started with `{START}`, and has to see {path}."
            ) from error

    def _forget(self, name: str) -> None:
        """Take an adapter from the server, if it has it."""
        if name in self._adapters():
            self.client.ask("/v1/unload_lora_adapter", {"lora_name": name})

    def _adapters(self) -> dict[str, str | None]:
        """The folder of each adapter that the server has; its base model is among them."""
        try:
            models = self.client.ask("/v1/models")["data"]
            return {model["id"]: model.get("root") for model in models}
        except (NotFoundError, TypeError, KeyError) as error:
            sentence = f"{self.client.url} is no vLLM server: it lists no models."
            raise EngineError(sentence) from error

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion, from a server that may be restarted meanwhile."""
        trouble = None
        for _ in range(ATTEMPTS):
            try:
                choice = self.client.ask("/v1/completions", body)["choices"][0]
            except NotFoundError as error:
                trouble = error
                with self._resending:
                    self._send(self.folder / body["model"])
                continue
            if choice["finish_reason"] in ("stop", "length"):
                return choice
            trouble = f"it broke a completion off ({choice['finish_reason']})"
        raise EngineError(f"vLLM at {self.client.url} does not keep up: {trouble}.")

    def _check_logprobs(self, name: str, prompt_ids: list[int], params: SamplingParams) -> None:
        """The server reports log-probs of what it draws from: where only the most likely token is
        left, that has 0. The model's own would not know of temperature, top_k and top_p. (Two
        tokens may be equally likely, in 16 bits now and then.)"""
        only_one = sampling(SamplingParams(min(params.max_new_tokens, 16), (), top_k=1), seed=0)
        body = {"model": name, "prompt": prompt_ids, "return_token_ids": True}
        choice = self._complete(body | only_one)
        if np.median(choice["logprobs"]["token_logprobs"]) < -1e-3:
            raise EngineError(
                f"vLLM at {self.client.url} reports log-probs without the temperature; start it "
                f"with `{START}`."
            )
        self.checked = True


def on_main(act: Callable[[], Any]) -> Any:
    """What the main process finds, or the sentence it fails with, on all processes."""
    answer: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = act()
        except EngineError as error:
            answer[1] = str(error)
        except OSError as error:
            answer[1] = f"The adapter for vLLM could not be written: {error.strerror or error}."
    found, trouble = broadcast_object_list(answer)
    if trouble is not None:
        raise EngineError(trouble)
    return found


def check_loaded(policy: Network, loaded: str) -> None:
    """The policy is what it was when the adapter of this name was made of it.

    Raises:
        EngineError: it has changed since.
    """
    if adapter_name(policy) != loaded:
        raise EngineError(
            "vLLM has the weights of an earlier step: load(policy) comes before sampling."
        )


def row_seeds(seed: int, step: int, rows: np.ndarray) -> list[int]:
    """One seed per row, a function of (seed, step, row) alone, so that a resumed run and any
    number of processes sample alike; 32 bits, as generators on a CPU read no more."""
    return [int(np.random.SeedSequence([seed, step, row]).generate_state(1)[0]) for row in rows]


def check_sampling(generation_kwargs: dict[str, Any] | None) -> None:
    """ValueError where a setting has no counterpart in vLLM."""
    if unknown := [name for name in generation_kwargs or {} if name not in GENERATION_KWARGS]:
        raise ValueError(
            f"vLLM does not know {', '.join(unknown)} of generation_kwargs, only "
            f"{', '.join(GENERATION_KWARGS)}; leave it out, or sample without use_vllm."
        )


def sampling(params: SamplingParams, seed: int) -> dict[str, Any]:
    """`params` in vLLM's words, complete: what is left out the model's own settings would fill."""
    return {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p or 0.0,
        "repetition_penalty": params.repetition_penalty,
        "min_tokens": params.generation_kwargs.get("min_new_tokens") or 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # ours below are all there are
        "stop_token_ids": list(params.eos_token_ids),
        "logprobs": 0,  # of the sampled token alone
        "seed": seed,
    }


def completions_of(
    prompt_ids: list[list[int]],
    token_ids: list[list[int]],
    logprobs: list[list[float | None]],
    params: SamplingParams,
    vocabulary: int,
) -> Completions:
    """What vLLM said, in this program's conventions; a log-prob it does not have is NaN.

    Raises:
        EngineError: tokens that the policy does not have.
    """
    if max((i for ids in token_ids for i in ids), default=0) >= vocabulary:
        raise EngineError(
            f"vLLM sampled tokens beyond the policy's vocabulary of {vocabulary}: it serves "
            "another model than the one that is trained."
        )
    return Completions(
        prompt_ids,
        token_ids,
        truncated=[not (ids and ids[-1] in params.eos_token_ids) for ids in token_ids],
        token_logprobs_sampler=[[np.nan if x is None else x for x in row] for row in logprobs],
    )
