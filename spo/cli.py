"""Dataclasses, a YAML recipe and the command line -> filled-in dataclasses.

Every field is a flag under the heading its metadata names. The recipe sets any of them, the
command line wins, and all unknown names are one error that suggests the nearest ones.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml

from spo import __version__
from spo.options import alternatives
from spo.trl import Translation, advice, is_known, our_value, translate

OWN_RECIPES = (Path(), Path("recipes"))
"""How a recipe that comes with SPO may be named."""


class Parser(argparse.ArgumentParser):
    """argparse with exact names only, and errors that name the nearest flag."""

    def __init__(self, classes: tuple[type, ...], **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.classes = classes
        self.fields = {f.name: f for cls in classes for f in dataclasses.fields(cls)}
        self.lists: set[str] = set()
        general = self.add_argument_group("recipe")
        general.add_argument(
            "--config", metavar="FILE.yaml", help="Recipe that sets any flag below; flags win."
        )
        general.add_argument("--version", action="version", version=f"spo {__version__}")
        groups: dict[str, argparse._ArgumentGroup] = {}
        for cls in classes:
            hints = get_type_hints(cls)
            for field in dataclasses.fields(cls):
                heading = field.metadata["group"]
                if heading not in groups:
                    groups[heading] = self.add_argument_group(heading)
                action = _add_flag(groups[heading], field, hints[field.name])
                if action.nargs == "+":
                    self.lists.add(field.name)

    def parse(self, argv: list[str], default_recipe: str | Path | None = None) -> tuple[Any, ...]:
        """One instance per dataclass; `self.note` says what was accepted without effect.

        `default_recipe` is read where neither --config nor --model_name_or_path is given.
        """
        argv, foreign = self._without_foreign([self._underscores(word) for word in argv])
        known, unknown = self.parse_known_args(argv)
        given = {k: v for k, v in vars(known).items() if v is not None and k != "config"}
        for name in self.lists & given.keys():
            given[name] = [item for items in given[name] for item in items]
        strangers = [word for word in unknown if word.startswith("--")] or unknown
        line = translate(given | foreign, [*self.fields, "config"])
        line.problems = {f"--{name}": what for name, what in line.problems.items()}
        for word in strangers:
            line.problems[word] = advice(_name_of(word), [*self.fields, "config"])
        recipe = known.config
        if recipe is None and "model_name_or_path" not in given:
            recipe = default_recipe
        path = self._find(recipe, default_recipe) if recipe else None
        of_recipe = self.read_recipe(path) if path else Translation()
        problems = [f"unknown {_listed('argument', line.problems)}"] if line.problems else []
        if of_recipe.problems:
            problems.append(f"unknown {_listed('key', of_recipe.problems, f' in {path}')}")
        if problems:
            self.error(", and ".join(problems))
        done = of_recipe | line
        self.note = done.summary()
        values = {name: self._in_a_list(name, value) for name, value in done.settings.items()}
        instances = []
        for cls in self.classes:
            names = [f.name for f in dataclasses.fields(cls)]
            instances.append(cls(**{name: values[name] for name in names if name in values}))
        return tuple(instances)

    def read_recipe(self, path: str | Path) -> Translation:
        """The settings of a YAML file."""
        if not Path(path).is_file():
            self.error(f"recipe {path} does not exist")
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            self.error(f"recipe {path} is not valid YAML: {error}")
        if not isinstance(values, dict):
            self.error(f"recipe {path} must be a mapping of flags to values")
        return translate(values, self.fields)

    def _in_a_list(self, name: str, value: Any) -> Any:
        """One value makes a list of one."""
        if name not in self.lists or isinstance(value, list | None):
            return value
        return _items(str)(value) if isinstance(value, str) else [value]

    def _underscores(self, word: str) -> str:
        """--lora-r=8 as --lora_r=8, where there is such a flag."""
        flag, equals, value = word.partition("=")
        known = _name_of(flag) in self.fields or is_known(_name_of(flag))
        return f"--{_name_of(flag)}{equals}{value}" if flag[:2] == "--" and known else word

    def _without_foreign(self, argv: list[str]) -> tuple[list[str], dict[str, Any]]:
        """The words of flags of our own, and the values of those that only others have."""
        ours: list[str] = []
        foreign: dict[str, list[str]] = {}
        words = ours
        for word in argv:
            if word.startswith("--"):
                flag, equals, value = word.removeprefix("--").partition("=")
                is_foreign = flag not in self.fields and is_known(flag)
                words = foreign.setdefault(flag, []) if is_foreign else ours
                word = value if is_foreign else word
                if is_foreign and not equals:
                    continue
            words.append(word)
        return ours, {name: _value(words) for name, words in foreign.items()}

    def _find(self, recipe: str | Path, default_recipe: str | Path | None) -> Path:
        """A recipe of SPO's own, "recipes/gsm8k.yaml", is found from any folder."""
        path = Path(recipe)
        if path.is_file() or default_recipe is None or path.parent not in OWN_RECIPES:
            return path
        own = Path(default_recipe).parent / path.name
        return own if own.is_file() else path

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _name_of(word: str) -> str:
    """
    >>> _name_of("--lora-r=8")
    'lora_r'
    """
    return word.split("=")[0].removeprefix("--").replace("-", "_")


def _value(words: list[str]) -> Any:
    """What stands behind a flag of somebody else's, as YAML reads it; nothing means true."""
    if not words:
        return True
    values = [yaml.safe_load(word) for word in words]
    return values[0] if len(values) == 1 else values


def _listed(kind: str, problems: dict[Any, str], place: str = "") -> str:
    """All of them in one sentence, with what each may have meant.

    >>> _listed("argument", {"--lr": "did you mean learning_rate?"})
    'argument --lr; did you mean learning_rate?'
    """
    shown = {repr(name) if kind == "key" else name: what for name, what in problems.items()}
    if len(shown) == 1:
        ((name, what),) = shown.items()
        return f"{kind} {name}{place}; {what}"
    return f"{kind}s {', '.join(f'{name} ({what})' for name, what in shown.items())}{place}"


class HelpFormatter(argparse.HelpFormatter):
    """Names in one column, help beside them, 80 columns and up."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34)

    def _format_usage(self, usage, actions, groups, prefix):
        return f"usage: {self._prog} [--config FILE.yaml] [--flag value ...]\n\n"


def _add_flag(
    group: argparse._ArgumentGroup, field: dataclasses.Field, hint: Any
) -> argparse.Action:
    """The flag of one field; a flag not given stays None, so that the recipe shows through."""
    kinds = [kind for kind in alternatives(hint) if kind is not type(None)]
    kind = kinds[0]
    default = default_of(field)
    text = field.metadata["help"].replace("%", "%%")
    if default not in (None, "", [], {}) and default is not False:
        text += f" [{default}]"
    options: dict[str, Any] = {"help": text, "default": None, "metavar": _metavar(kind)}
    if kind is bool:
        options |= {"type": _boolean, "nargs": "?", "const": True}
    elif get_origin(kind) is Literal:
        choices = "|".join(get_args(kind))  # where they are many the help names them
        options |= {"choices": get_args(kind), "metavar": choices if len(choices) < 50 else "NAME"}
        options |= {"type": functools.partial(our_value, field.name)}
    elif get_origin(kind) is list:
        item = get_args(kind)[0]
        options |= {"nargs": "+", "type": _items(str if get_origin(item) is Literal else item)}
    elif get_origin(kind) is dict:
        options |= {"type": _mapping}
    elif len(kinds) > 1 and get_origin(kinds[1]) is Literal:
        options |= {"type": _number_or(get_args(kinds[1])), "metavar": f"X|{get_args(kinds[1])[0]}"}
    else:
        options |= {"type": kind}
    return group.add_argument(f"--{field.name}", **options)


def _metavar(kind: Any) -> str:
    if kind is bool:
        return "true|false"
    if get_origin(kind) is list:
        item = get_args(kind)[0]
        return "NAME" if get_origin(item) is Literal else item.__name__.upper()
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "JSON")


def default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _number_or(words: tuple[str, ...]) -> Callable[[str], float | str]:
    """Reader of a number that one of the words may stand for."""

    def read(text: str) -> float | str:
        try:
            return text if text in words else float(text)
        except ValueError:
            allowed = " or ".join(("a number", *words))
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}") from None

    return read


def _items(kind: type) -> Callable[[str], list[Any]]:
    """Reader of one word of a list: a, b and "a", "b" and [a,b] are two items."""

    def read(text: str) -> list[Any]:
        words = [word.strip(" \"'") for word in text.strip("[] ").split(",")]
        try:
            return [kind(word) for word in words if word]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind.__name__}") from None

    return read


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def options_table(classes: tuple[type, ...]) -> str:
    """The Markdown table of all flags, for the README."""
    lines = []
    heading = None
    for cls in classes:
        for field in dataclasses.fields(cls):
            if field.metadata["group"] != heading:
                heading = field.metadata["group"]
                lines += ["", f"**{heading}**", "", "| Flag | Default | Meaning |", "|---|---|---|"]
            default = json.dumps(default_of(field))
            help_text = field.metadata["help"].replace("|", "\\|")
            lines.append(f"| `{field.name}` | `{default}` | {help_text} |")
    return "\n".join(lines[1:])
