"""Rollouts -> small pieces of HTML for the tabs around the reader. Text enters escaped, always."""

import html
import re
from urllib.parse import urlencode

import numpy as np

from spo.inspector.step import Step
from spo.inspector.text import char_ends
from spo.inspector.views import SCALE_PERCENTILE, measure, scales
from spo.rollouts import Credit
from spo.segments import segment_starts

UNSEEN = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff]"
)

CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def address(**fields) -> str:
    """`#run=…&step=…`; fields that are None are left out.

    >>> address(run="a b", step=3, tab=None)
    '#run=a+b&step=3'
    """
    return "#" + urlencode({name: value for name, value in fields.items() if value is not None})


def link(text: str, **fields) -> str:
    return f'<a href="{html.escape(address(**fields))}">{html.escape(printable(text))}</a>'


def printable(text: str) -> str:
    """Control and direction characters made visible.

    >>> printable("a\u202eb")
    'a\ufffdb'
    """
    return UNSEEN.sub("\ufffd", text)


def plain_markdown(text: str) -> str:
    """Markdown without HTML and images, for the component that renders it: a completion must not
    make the browser ask for anything.

    >>> plain_markdown("**a** <img src=x> `<b>` ![i](x)")
    '**a** &lt;img src=x> `<b>` !&#91;i](x)'
    """
    parts = CODE.split(text)
    return "".join(
        part if number % 2 else part.replace("<", "&lt;").replace("![", "!&#91;")
        for number, part in enumerate(parts)
    )


def one_line(text: str, size: int = 80) -> str:
    """A text for a cell of a table: its beginning, line breaks as ↵."""
    short = printable(text.replace("\n", "↵").replace("\t", "⇥"))
    return short if len(short) <= size else short[: size - 1] + "…"


def token_texts(step: Step, row: int) -> list[str]:
    """The text of each token of a completion; they join to the completion."""
    text = step.rollouts.completions[row]
    length = int(step.rollouts.lengths[row])
    ends = char_ends(text, step.rollouts.token_ends[row, :length])
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def colour_class(x: float, reach: float) -> int:
    """One of 15 colours, 7 the neutral one: `colourClass` of static/scale.js.

    >>> [colour_class(x, 1.0) for x in (-9.0, -0.1, 0.0, 0.1, 0.5, 9.0)]
    [0, 6, 7, 8, 11, 14]
    """
    share = x / reach
    if not abs(share) >= 0.02:
        return 7
    return int(7 + np.sign(share) * min(7, np.ceil(7 * abs(share))))


def completion_html(step: Step, row: int, credit: Credit | None = None, limit: int = 400) -> str:
    """The first `limit` tokens of a completion, coloured by advantage, segments marked."""
    credit = credit or step.credit
    numbers = measure(step, credit, "advantage")
    reach = scales(step).get("advantage", 1.0)
    starts = segment_starts(credit.segment_ids)[row]
    texts = token_texts(step, row)
    spans = []
    for at, text in enumerate(texts[:limit]):
        cut = " cut" if at and starts[at] else ""
        title = f"A {numbers[row, at]:+.3g}"
        spans.append(
            f'<span class="t c{colour_class(numbers[row, at], reach)}{cut}" title="{title}">'
            f"{html.escape(text)}</span>"
        )
    rest = len(texts) - limit
    more = f'<span class="hint"> … {rest} more tokens</span>' if rest > 0 else ""
    return f'<div class="text" dir="auto">{"".join(spans)}{more}</div>'


def legend_html(step: Step) -> str:
    """What the colours of `completion_html` mean."""
    reach = scales(step).get("advantage", 1.0)
    cells = "".join(f'<i class="c{number}"></i>' for number in (0, 2, 5, 7, 9, 12, 14))
    return (
        f'<div class="legend"><span>advantage ≤ −{reach:.2g}</span>'
        f'<span class="cells">{cells}</span>'
        f"<span>≥ {reach:.2g} ({SCALE_PERCENTILE}th percentile of the step)</span></div>"
    )
