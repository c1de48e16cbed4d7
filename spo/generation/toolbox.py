"""What the policy may call: functions, and the methods of environments -> schemas and answers."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
)

from spo.calls import LoopEndedError, TimeIsUpError, deadline, settle
from spo.prompts import PromptBatch
from spo.rewards.calling import RewardFunction, copied

NO_TOOLS = ("reset", "get_reward")
"""Public methods of an environment that the policy cannot call."""


@dataclass(frozen=True)
class Call:
    """One call: the tools to choose from, the name and the arguments that the policy wrote."""

    tools: dict[str, Callable[..., Any]]
    name: str
    arguments: Any


@dataclass(frozen=True)
class Answer:
    """What the policy reads, and whether it is an error."""

    content: str
    failed: bool


class Toolbox:
    """The tools of a run.

    Args:
        tools: functions.
        environment_factory: makes an environment; or several such functions by name; or None.

    Attributes:
        functions: tools by name that every prompt has.
        factories: what makes environments, by name; a single one has the name None.
        schemas: what the chat template is told of the tools, by the name of the environment.
        timeout: seconds that a call may take.
    """

    def __init__(
        self,
        tools: Sequence[Any],
        environment_factory: Any,
        timeout: float | int | None,
    ):
        several = isinstance(environment_factory, dict)
        self.functions = {_name(tool): tool for tool in tools}
        self.factories = environment_factory if several else {None: environment_factory}
        self.has_environments, self.timeout = environment_factory is not None, timeout
        self._instances: dict[str | None, list[Any]] = {name: [] for name in self.factories}
        if self.has_environments:
            self._instances = {name: [make()] for name, make in self.factories.items()}
        self.schemas = {}
        for name, made in self._instances.items():
            for environment in made:
                if not callable(getattr(environment, "reset", None)):
                    kind = type(environment).__name__
                    raise ValueError(f"The environment {kind} has no method reset(**columns).")
            known = self.tools_of(made[0] if made else None)
            self.schemas[name] = [_schema(tool, call) for tool, call in known.items()]

    def tools_of(self, environment: Any) -> dict[str, Callable[..., Any]]:
        """What one completion may call, by name."""
        if environment is None:
            return dict(self.functions)
        methods = inspect.getmembers(type(environment), inspect.isfunction)
        names = [name for name, _ in methods if name not in NO_TOOLS and not name.startswith("_")]
        return self.functions | {name: getattr(environment, name) for name in names}

    def reset(self, prompts: PromptBatch) -> tuple[list[Any], list[str | None]]:
        """An environment of its own for every row, reset with the row's columns; and what each
        wants to add to the prompt. Instances are made once and reset often."""
        if not self.has_environments:
            return [None] * len(prompts), [None] * len(prompts)
        environments, used = [], dict.fromkeys(self.factories, 0)
        names = [None] * len(prompts) if None in used else prompts.columns["environment"]
        for name in names:
            if used[name] == len(self._instances[name]):
                self._instances[name].append(self.factories[name]())
            environments.append(self._instances[name][used[name]])
            used[name] += 1
        columns = {"prompt": prompts.prompts} | prompts.columns
        if None not in self.factories:
            del columns["environment"]
        added = []
        for i, environment in enumerate(environments):
            row = {name: copied(column[i]) for name, column in columns.items()}
            added.append(environment.reset(**row))
            if not isinstance(added[-1], str | None):
                raise ValueError(
                    f"{type(environment).__name__}.reset returned {type(added[-1]).__name__}: it "
                    "returns None or a text to add to the prompt."
                )
        return environments, added

    def run(self, calls: list[Call]) -> list[Answer]:
        """Call one tool after the other; async ones then wait together. Whatever goes wrong is the
        policy's to read: it may have been its mistake."""
        outputs = [self._begin(call) for call in calls]
        waiting = [i for i, (output, _) in enumerate(outputs) if inspect.isawaitable(output)]
        settled = settle([outputs[i][0] for i in waiting], self.timeout) if waiting else []
        for i, result in zip(waiting, settled, strict=True):
            outputs[i] = (result, isinstance(result, BaseException))
        return [self._answer(output, failed) for output, failed in outputs]

    def _begin(self, call: Call) -> tuple[Any, bool]:
        """What a tool returned, or the exception it raised and True."""
        try:
            if call.name not in call.tools:
                raise ValueError(f"Tool {call.name} not found.")
            with deadline(self.timeout):
                return call.tools[call.name](**copied(call.arguments)), False
        except (Exception, SystemExit) as error:
            return error, True

    def _answer(self, output: Any, failed: bool) -> Answer:
        """As TRL writes it: the result as text, an error as {'error': text}."""
        if isinstance(output, TimeIsUpError):
            text = f"took longer than {self.timeout:g} seconds"
        elif isinstance(output, LoopEndedError):
            text = "ended the event loop"
        else:
            text = str(output)
        content = str({"error": text}) if failed else text
        return Answer(content.encode("utf-8", "replace").decode(), failed)

    def reward_functions(self) -> list[RewardFunction]:
        """The environments' own rewards, one for each class with a method get_reward()."""
        made = [instances[0] for instances in self._instances.values() if instances]
        kinds = dict.fromkeys(type(e) for e in made if callable(getattr(e, "get_reward", None)))
        return [RewardFunction(kind.__name__, _own_reward(kind)) for kind in kinds]


def build_toolbox(
    tools: Sequence[Callable[..., Any]] | None, environment_factory: Any, timeout: float | None
) -> Toolbox | None:
    """None where there is nothing to call."""
    if not tools and environment_factory is None:
        return None
    return Toolbox(tools or [], environment_factory, timeout)


def _own_reward(kind: type) -> Callable[..., Any]:
    """A reward function that asks each environment of this class, and None of the others."""
    if inspect.iscoroutinefunction(kind.get_reward):

        async def get_reward(environments: list[Any], **columns: Any) -> list[float | None]:
            return [await e.get_reward() if type(e) is kind else None for e in environments]

    else:

        def get_reward(environments: list[Any], **columns: Any) -> list[float | None]:
            return [e.get_reward() if type(e) is kind else None for e in environments]

    return get_reward


def _name(tool: Any) -> str:
    if not callable(tool) or not hasattr(tool, "__name__"):
        raise ValueError(f"A tool is a function, not {tool!r}.")
    return tool.__name__


def _schema(name: str, tool: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ValueError(
            f"The tool {name!r} cannot be described to the model ({str(error).rstrip('.!')}): give "
            "it type hints and a docstring with a line for every argument."
        ) from error
