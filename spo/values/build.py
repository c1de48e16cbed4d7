"""SPOConfig and what the run is made of -> its critic, checked against the data."""

from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, IterableDataset

from spo.config import SPOConfig
from spo.data import require_column
from spo.generation.engine import Generator, SamplingParams
from spo.generation.rollout_func import RolloutFunc
from spo.generation.tools import ToolUse
from spo.learner import build_learner
from spo.networks.checks import known_positions
from spo.networks.network import Network
from spo.rewards.functions import RewardFunction
from spo.rows import beginning, is_stream
from spo.scoring import reward, score_shared
from spo.values.critic import Critic, ValueSource
from spo.values.hint import HintInputs, prompts_with_references
from spo.values.monte_carlo import MonteCarloInputs
from spo.values.network import NetworkValue
from spo.values.peers import PeerInputs
from spo.values.prompt_memory import HistoryInputs, PromptMemory
from spo.values.reference import ReferenceInputs
from spo.values.references import MEMORY, PEER, References, as_reference
from spo.values.regression import Inputs, Regression
from spo.values.rest import RestInputs, score_references
from spo.values.surprisal import SurprisalInputs, path_regression

MAX_REMEMBERED = 4096
"""Prompts of which the memory keeps a right completion."""


class CriticBuilder:
    """What the sources are made of.

    Args:
        policy, processing_class, generator, params, rewards: of the run.
        dataset: its prepared prompts.
    """

    def __init__(
        self,
        policy: Network,
        processing_class: Any,
        generator: Generator,
        params: SamplingParams,
        rewards: list[RewardFunction],
        dataset: Dataset | IterableDataset,
        args: SPOConfig,
    ):
        self.policy, self.processing_class, self.args = policy, processing_class, args
        self.generator, self.params, self.rewards = generator, params, rewards
        self.dataset = beginning(dataset)
        asks = MEMORY in (args.value_reference or []) or "history" in args.regression_sources
        slots = MAX_REMEMBERED if is_stream(dataset) else min(len(dataset), MAX_REMEMBERED)
        self.memory = PromptMemory(args.value_right_reward, slots) if asks else None

    def build(
        self,
        network: Network | None,
        value_model: Any,
        accelerator: Accelerator,
        num_updates: int,
    ) -> Critic:
        """The sources that `args` ask for; a critic folder named by `value_model` gives back the
        sums of its regression."""
        args = self.args
        self._check_references(network)
        sources: list[ValueSource] = []
        regression = self._regression(network)
        if regression is not None:
            if isinstance(value_model, str):
                regression.load(Path(value_model))
            sources.append(regression)
        if network is not None:
            learner = build_learner(network, "values", accelerator, args, num_updates)
            more = (self._tokenize,) if args.value_prompt == "reference" else ()
            sources.append(NetworkValue(learner, args, *more))
        references = None
        if args.value_reference and sources:
            references = References(args.value_reference, args.value_right_reward, self.memory)
        return Critic(sources, args, references, self.memory)

    def _regression(self, network: Network | None) -> Regression | None:
        if names := self.args.regression_sources:
            return Regression([self._inputs(name) for name in names])
        beside = network is not None
        return path_regression() if self.args.wants_path_value(has_value_network=beside) else None

    def _inputs(self, name: str) -> Inputs:
        args = self.args
        match name:
            case "surprisal":
                return SurprisalInputs()
            case "reference":
                return ReferenceInputs(args.value_reference_items)
            case "rest":
                score = partial(score_references, self._score, self.processing_class)
                return RestInputs(score, args.value_reference_items[0])
            case "peers":
                return PeerInputs()
            case "history":
                return HistoryInputs(self.memory)
            case "hint":
                return HintInputs(self._tokenize, self._score)
            case "monte_carlo":
                return self._monte_carlo()
        raise ValueError(f"There is no value source {name!r}.")

    def _monte_carlo(self) -> MonteCarloInputs:
        args = self.args
        if isinstance(self.generator, RolloutFunc | ToolUse):
            raise ValueError(
                "The value source 'monte_carlo' continues completions half-way, which neither a "
                "rollout_func nor an environment of tools can; leave it out of value_sources."
            )
        return MonteCarloInputs(
            self.generator,
            self.params,
            self.processing_class,
            lambda *rows: reward(*rows, self.rewards, args).completion_rewards,
            args.value_continuations,
            args.value_continued_segments,
        )

    def _score(self, prompt_ids: list[list[int]], token_ids: list[list[int]]):
        """A pass of the policy: log-probs and entropies of every row's completion, ragged."""
        return score_shared(self.policy, "logprobs_and_entropies", prompt_ids, token_ids, self.args)

    def _tokenize(self, rollouts):
        tools = self.generator.toolbox.schemas if isinstance(self.generator, ToolUse) else None
        return prompts_with_references(rollouts, self.processing_class, self.args, tools)

    def _check_references(self, network: Network | None) -> None:
        """The data set has what `value_reference` names, and it fits into the model's positions."""
        args = self.args
        for column in args.reference_columns:
            require_column(self.dataset, column)
        columns = [self.dataset[name] for name in args.reference_columns]
        texts = [text for column in columns for text in map(as_reference, column) if text]
        from_run = {PEER, MEMORY} & {*(args.value_reference or [])}
        if columns and not texts and not from_run:
            names = ", ".join(args.reference_columns)
            raise ValueError(f"value_reference: no row has anything in {names}.")
        by_network = network if args.value_prompt == "reference" else None
        if by_network is None and args.value_prompt == "reference":
            raise ValueError("value_prompt='reference' needs a critic network: value_model_path.")
        readers = [by_network] if by_network is not None else []
        if {"hint", "rest"} & {*args.regression_sources}:
            readers.append(self.policy)
        for reader in readers:
            self._check_length(reader, texts, bool(from_run))

    def _check_length(self, reader: Network, texts: list[str], from_run: bool) -> None:
        """Reference, prompt and completion fit; for `rest` alone reference and prompt."""
        args, positions = self.args, known_positions(reader.model.config)
        wording = [args.value_reference_prompt]
        ids = self.processing_class([*texts, *wording], add_special_tokens=False)["input_ids"]
        *of_texts, of_wording = map(len, ids)
        longest = max([*of_texts, args.max_completion_length * from_run])
        prompt = max(map(len, self.dataset["prompt_ids"]))
        total = prompt + longest
        if reader is not self.policy or "hint" in args.regression_sources:
            total += of_wording + args.max_completion_length
        if positions and total > positions:
            raise ValueError(
                f"The longest reference has {longest} tokens; read beside prompts and completions "
                f"it takes up to {total} positions, but the model knows {positions}; shorten the "
                "references, or leave out what reads them: 'hint' and 'rest' in value_sources, "
                "value_prompt='reference'."
            )
