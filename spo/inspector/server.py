"""The functions the page calls. Each takes one JSON object and answers with an envelope.

Gradio hands a page `undefined` when a server function raises, and packs several arguments into
one list; so each function has one argument, and what a person can cause (a damaged file, a wrong
number, an unknown step) comes back as `{"ok": false, "error": sentence}`. The answer is one JSON
string, which Gradio's encoder passes through instead of walking it. Any other exception is a bug
of ours and stays one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spo.inspector import export, picture, views, whatif
from spo.inspector.bounded import TooLarge
from spo.inspector.folder import Folder
from spo.inspector.history import Histories
from spo.inspector.reading import count_groups, read_group, read_step
from spo.inspector.step import Step

Query = dict[str, Any]


def page_functions(
    folder: Folder, histories: Histories | None = None
) -> list[Callable[[Query], str]]:
    """The server functions of the page, bound to the one folder it may read."""
    functions = (
        list_steps,
        get_step,
        get_credit_inputs,
        get_group,
        recompute,
        draw_completion,
    )
    exporting = envelope(export_group, folder, histories or Histories(folder))
    return [*(envelope(function, folder) for function in functions), exporting]


def envelope(function: Callable[..., dict], *given: Folder | Histories) -> Callable[[Query], str]:
    """The function on what it is given, answering with JSON text that says whether it worked."""

    def answer(query: Query) -> str:
        try:
            if not isinstance(query, dict):
                raise ValueError("A request is one JSON object.")
            result = {"ok": True, **function(*given, query)}
        except (ValueError, OSError) as error:
            result = {"ok": False, "error": str(error)}
        return json.dumps(result, allow_nan=False)

    answer.__name__ = function.__name__  # the name the page calls
    return answer


def text(query: Query, key: str) -> str:
    value = query.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key}={str(value)[:40]} is not a text.")
    return value


def integer(query: Query, key: str) -> int:
    value = query.get(key, 0)
    if type(value) is not int:
        raise ValueError(f"{key}={str(value)[:40]} is not a whole number.")
    return value


def step_of(folder: Folder, query: Query) -> Step:
    return read_step(folder.step_path(text(query, "run"), integer(query, "step")))


def list_steps(folder: Folder, query: Query) -> dict:
    run = text(query, "run") or list(folder.runs())[-1]
    steps = folder.steps(run)
    skipped = ", ".join(f"{name} ({why})" for name, why in steps.skipped.items())
    return {
        "run": run,
        "steps": list(steps.paths),
        "note": f"Skipped: {skipped}." if skipped else "",
    }


def get_step(folder: Folder, query: Query) -> dict:
    try:
        step = step_of(folder, query)
    except TooLarge as error:
        return large_summary(folder.step_path(text(query, "run"), integer(query, "step")), error)
    return checked_summary(step)


def checked_summary(step: Step) -> dict:
    check = whatif.check_saved(step)
    badge = whatif.badge(check, step.rollouts.num_generations)
    return views.step_summary(step) | {"check": check, "badge": badge}


def large_summary(path: Path, error: TooLarge) -> dict:
    """What the page needs of a step that is read prompt by prompt, from its first prompt.

    Raises:
        TooLarge: its prompts share row groups, so that not even one of them can be read.
    """
    groups = count_groups(path)
    if not groups:
        raise error
    summary = views.step_summary(read_group(path, 0).step)
    reason = "too large to recompute here; every prompt is shown as saved"
    check = {"state": "impossible", "reason": reason}
    badge = whatif.badge(check, 1)
    return summary | {"groups": groups, "in_browser": False, "check": check, "badge": badge}


def get_credit_inputs(folder: Folder, query: Query) -> dict:
    step = step_of(folder, query)
    if not views.fits_browser(step):
        raise ValueError("This step is not recomputed in the browser.")
    return views.credit_inputs(step)


def get_group(folder: Folder, query: Query) -> dict:
    number = integer(query, "group")
    found = read_group(folder.step_path(text(query, "run"), integer(query, "step")), number)
    view = views.group_view(found.step, found.index)
    for completion in view["completions"]:
        completion["row"] += found.first_row
    return view | {"group": number}


def recompute(folder: Folder, query: Query) -> dict:
    settings = query.get("settings")
    if not isinstance(settings, dict):
        raise ValueError("recompute needs settings.")
    return whatif.recompute(step_of(folder, query), integer(query, "group"), settings)


def export_group(folder: Folder, histories: Histories, query: Query) -> dict:
    rows = query.get("rows")
    if rows is not None and not (isinstance(rows, list) and all(type(row) is int for row in rows)):
        raise ValueError("rows must be a list of positions in the group.")
    place = {key: query.get(key) for key in ("run", "step", "group")}
    group, address = integer(query, "group"), str(query.get("address", ""))
    history = histories.get(text(query, "run"))
    step = step_of(folder, query)
    return {"html": export.export_group(step, group, rows, place, address, history)}


def draw_completion(folder: Folder, query: Query) -> dict:
    found = step_of(folder, query)
    rows = views.group_rows(found, integer(query, "group"))
    row = rows.start + integer(query, "completion")
    settings = query.get("settings")
    if row not in range(rows.start, rows.stop):
        raise ValueError("There is no such completion.")
    if settings is not None and not isinstance(settings, dict):
        raise ValueError("settings must be an object.")
    title = (
        f"{text(query, 'run')} · step {integer(query, 'step')} · "
        f"prompt {integer(query, 'group') + 1} · completion {row - rows.start + 1}"
    )
    colour = text(query, "colour")
    return {"svg": picture.draw_completion(found, row, colour, settings, title)}
