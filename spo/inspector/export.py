"""A prompt group -> one self-contained HTML file: opens from disk, offline, sliders working.

The file holds uPlot and the page's own modules joined into one script, and the answers of the
server functions as data. Its content-security policy allows that script by hash and no connection.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

from spo.inspector import charts, views, whatif
from spo.inspector.history import History
from spo.inspector.step import Step

STATIC = Path(__file__).parent / "static"
IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function|class|const) (\w+)", re.MULTILINE)


def export_group(
    step: Step,
    group: int,
    rows: list[int] | None,
    place: dict[str, Any],
    address: str = "",
    history: History | None = None,
) -> str:
    """The HTML text.

    Args:
        rows: completions of the group to show, None: all. The numbers of the other completions of
            the step stay in the file (without text), because boundaries and normalisation are
            decided over the whole step.
        place: run, step and group as the page shows them.
        address: the part of the page's address after '#', so that the file opens in the same view.
        history: the run, whose charts stand below; None: no charts.
    """
    check = whatif.check_saved(step)
    badge = whatif.badge(check, step.rollouts.num_generations)
    summary = views.step_summary(step) | {"check": check, "badge": badge}
    answers = {
        "list_steps": {"run": place.get("run"), "steps": [place.get("step")], "note": ""},
        "get_step": summary,
        "get_group": views.group_view(step, group, rows),
    }
    if summary["in_browser"]:
        answers["get_credit_inputs"] = views.credit_inputs(step)
    run = {
        "charts": charts.plain_charts(history) if history else [],
        "look": {"step": place.get("step"), "colours": charts.LINE_COLOURS},
    }
    data = json.dumps({"answers": answers, "address": address} | run, allow_nan=False)
    data = data.replace("<", "\\u003c")
    licence = f"/* uPlot:\n{source('uplot/LICENSE')}*/\n"
    script = licence + source("uplot/uPlot.iife.min.js") + bundle("export_main.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data: blob:"
    )
    title = html.escape(f"SPO {place.get('run')} · step {place.get('step')} · prompt {group + 1}")
    style = source("uplot/uPlot.min.css") + source("style.css")
    below = '<section class="spo run-charts" aria-label="The run"></section>' if history else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head>"
        f'<body class="exported">{source("reader.html")}{below}'
        f'<script type="application/json" id="spo-data">{data}</script>'
        f'<script type="module">{script}</script></body></html>\n'
    )


def bundle(entry: str) -> str:
    """A module and all it imports as one script: each module a function scope, imports first.

    Works because every import reads `import { … } from "./name.js";` and every export stands
    before a function, class or const.
    """
    ordered: list[str] = []

    def visit(name: str) -> None:
        for _, dependency in IMPORT.findall(source(name)):
            if f"{dependency}.js" not in ordered:
                visit(f"{dependency}.js")
        ordered.append(name)

    visit(entry)
    return "\n".join(scope(name) for name in ordered)


def scope(name: str) -> str:
    """`import { a } from "./b.js"` -> `const { a } = $b`, and `$b` = what b.js exports."""
    text = source(name)
    exported = ", ".join(EXPORT.findall(text))
    body = EXPORT.sub(lambda match: match[0].removeprefix("export "), text)
    body = IMPORT.sub(lambda match: f"const {match[1]} = ${match[2]};", body)
    return (
        f"const ${name.removesuffix('.js')} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();"
    )


def source(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
