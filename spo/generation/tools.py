"""Turns of the policy and answers of its tools -> one completion, on top of any generator.

    prompt | turn | answers + header | turn | answers + header | turn
             true   false              true   false              true     action_mask

A turn is sampled behind exactly the tokens before it: what the policy wrote stays the ids it
sampled, and the chat template writes the rest. Sampling, like everything else here, depends on
(seed, step, row, turn) alone: not on the other rows, and not on the number of processes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from spo.completions import Completions
from spo.data import template_arguments
from spo.generation.engine import Generator, SamplingParams
from spo.generation.tool_chat import ToolChat
from spo.generation.toolbox import Answer, Call, Toolbox
from spo.networks.network import Network
from spo.prompts import PromptBatch

NUMBERS = ("token_logprobs", "token_entropies", "token_logprobs_sampler")
"""Columns of `Completions` with a number for every token, 0 on those of tools."""

TURN = 2**32
"""Between the rows of one turn and of the next: every turn draws its own random numbers."""


@dataclass
class Dialogue:
    """One completion as it grows.

    Attributes:
        prompt_ids: what it completes.
        template_arguments: of the chat template, the schemas of the tools among them.
        tools: what it may call, by name.
        open: the policy speaks next.
    """

    prompt_ids: list[int]
    template_arguments: dict[str, Any]
    tools: dict[str, Any]
    token_ids: list[int] = field(default_factory=list)
    action_mask: list[bool] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False
    open: bool = True
    tool_calls: int = 0
    tool_failures: int = 0

    def add_turn(self, said: Completions, row: int, room: int) -> None:
        """What the policy said, as far as there is room."""
        ids = said.token_ids[row][:room]
        self.token_ids += ids
        self.action_mask += [True] * len(ids)
        self.truncated = said.truncated[row] or len(ids) < len(said.token_ids[row])
        for name in NUMBERS:
            if (column := getattr(said, name)) is not None:
                self.numbers.setdefault(name, []).extend(column[row][:room])

    def add_answers(self, ids: list[int]) -> None:
        """What the tools said, and the header of the next turn."""
        self.token_ids += ids
        self.action_mask += [False] * len(ids)
        for numbers in self.numbers.values():
            numbers += [0.0] * len(ids)

    @property
    def calls(self) -> list[Call]:
        """What the last turn asks for."""
        asked = [call["function"] for call in self.messages[-1].get("tool_calls", [])]
        return [Call(self.tools, function["name"], function["arguments"]) for function in asked]


class ToolUse:
    """A generator whose completions go on behind the answers of the tools they call.

    Args:
        inner: what samples a turn.
        toolbox: what can be called.
        chat: how the template writes it.
        max_iterations: rounds of calls in one completion; None: as many as fit into it.
        together: a context that all processes enter and leave at once, and in which each may call
            `inner` as often as its own rows want.
    """

    def __init__(
        self,
        inner: Generator,
        toolbox: Toolbox,
        chat: ToolChat,
        max_iterations: int | None,
        together: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.inner, self.toolbox, self.chat = inner, toolbox, chat
        self.max_iterations, self.together = max_iterations, together

    def __call__(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        with self.together():
            return self._complete(prompts, params, step)

    def _complete(self, prompts: PromptBatch, params: SamplingParams, step: int) -> Completions:
        prompts, dialogues, environments = self._begin(prompts)
        turn = 0
        while going := [row for row, dialogue in enumerate(dialogues) if dialogue.open]:
            self._speak(prompts, dialogues, np.array(going), turn, params, step)
            asking = [dialogues[row] for row in going if dialogues[row].open]
            if turn == self.max_iterations:
                for dialogue in asking:
                    dialogue.open = False
                break
            self._answer(asking, params.max_new_tokens)
            turn += 1
        return _completions(prompts, dialogues, environments)

    def load(self, policy: Network) -> None:
        """The generator below samples."""
        self.inner.load(policy)

    def _begin(self, prompts: PromptBatch) -> tuple[PromptBatch, list[Dialogue], list[Any]]:
        """Reset an environment for every row, and show what it says at the end of the prompt."""
        environments, added = self.toolbox.reset(prompts)
        given = template_arguments(
            prompts.columns, len(prompts), self.chat.template_kwargs, self.toolbox.schemas
        )
        if any(added):
            chats = [_with_text(*pair) for pair in zip(prompts.prompts, added, strict=True)]
            shown = [self.chat.prompt(*pair) for pair in zip(chats, given, strict=True)]
            texts, ids = map(list, zip(*shown, strict=True))
            prompts = replace(prompts, prompts=chats, prompt_texts=texts, prompt_ids=ids)
        dialogues = [
            Dialogue(ids, arguments, self.toolbox.tools_of(environment))
            for ids, arguments, environment in zip(
                prompts.prompt_ids, given, environments, strict=True
            )
        ]
        return prompts, dialogues, environments

    def _speak(
        self,
        prompts: PromptBatch,
        dialogues: list[Dialogue],
        rows: np.ndarray,
        turn: int,
        params: SamplingParams,
        step: int,
    ) -> None:
        """Sample the next turn of these rows; those that call no tool are over."""
        chosen = [dialogues[row] for row in rows]
        rooms = [params.max_new_tokens - len(dialogue.token_ids) for dialogue in chosen]
        before = [[*dialogue.prompt_ids, *dialogue.token_ids] for dialogue in chosen]
        asked = replace(
            prompts,
            rows=prompts.rows[rows] + turn * TURN,
            index=prompts.index[rows],
            prompts=[prompts.prompts[row] for row in rows],
            prompt_texts=[prompts.prompt_texts[row] for row in rows],
            prompt_ids=before,
            columns={n: [column[row] for row in rows] for n, column in prompts.columns.items()},
        )
        said = self.inner(asked, replace(params, max_new_tokens=max(rooms)), step)
        for i, (dialogue, room) in enumerate(zip(chosen, rooms, strict=True)):
            start = len(dialogue.token_ids)
            dialogue.add_turn(said, i, room)
            schemas = dialogue.template_arguments.get("tools", [])
            message = self.chat.parse(dialogue.token_ids[start:], before[i], schemas)
            dialogue.messages.append(message)
            dialogue.open = bool(dialogue.calls) and not dialogue.truncated

    def _answer(self, asking: list[Dialogue], limit: int) -> None:
        """Run what these rows call and append the answers; where there is no room for them and a
        further token, the completion is over."""
        calls = [dialogue.calls for dialogue in asking]
        answers = iter(self.toolbox.run([call for of_row in calls for call in of_row]))
        for dialogue, of_row in zip(asking, calls, strict=True):
            given = [_message(call, next(answers)) for call in of_row]
            dialogue.tool_calls += len(given)
            dialogue.tool_failures += sum(failed for _, failed in given)
            messages = [message for message, _ in given]
            ids = self.chat.answer_ids(messages, dialogue.template_arguments)
            if len(dialogue.token_ids) + len(ids) < limit:
                dialogue.add_answers(ids)
                dialogue.messages += messages
            else:
                dialogue.open, dialogue.truncated = False, True


def _message(call: Call, answer: Answer) -> tuple[dict[str, Any], bool]:
    return {"role": "tool", "name": call.name, "content": answer.content}, answer.failed


def _with_text(messages: list[dict[str, Any]], text: str | None) -> list[dict[str, Any]]:
    """The chat with a text behind its last message."""
    last = messages[-1]
    return [*messages[:-1], {**last, "content": last["content"] + (text or "")}]


def _completions(
    prompts: PromptBatch, dialogues: list[Dialogue], environments: list[Any]
) -> Completions:
    numbers = {
        name: [dialogue.numbers[name] for dialogue in dialogues]
        for name in (dialogues[0].numbers if dialogues else ())
    }
    has_environments = any(environment is not None for environment in environments)
    return Completions(
        prompts.prompt_ids,
        [dialogue.token_ids for dialogue in dialogues],
        truncated=[dialogue.truncated for dialogue in dialogues],
        **numbers,
        action_mask=[dialogue.action_mask for dialogue in dialogues],
        columns={"environments": environments} if has_environments else {},
        prompts=prompts,
        messages=[dialogue.messages for dialogue in dialogues],
        tool_calls=[dialogue.tool_calls for dialogue in dialogues],
        tool_failures=[dialogue.tool_failures for dialogue in dialogues],
    )
