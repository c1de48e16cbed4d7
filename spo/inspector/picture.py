"""A completion as SVG, for a paper or an issue.

Laid out here from the arrays, so that it shows what they say and not what a screen happens to show.
"""

import unicodedata
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from spo.inspector.markup import colour_class, printable, token_texts
from spo.inspector.step import Step
from spo.inspector.views import measure, scales
from spo.inspector.whatif import what_if
from spo.segments import segment_starts

CHAR = 7.83
"""Width of a character of the 13 px monospaced font, in px; wide characters take two."""
WIDTH, LINE, PAD = 760, 21, 16
ORANGE, BLUE = (232, 119, 34), (46, 116, 230)


def draw_completion(
    step: Step, row: int, colour: str, settings: dict[str, Any] | None, title: str
) -> str:
    """The SVG of one completion, coloured by a measure, under the saved or other settings."""
    credit = what_if(step, settings) if settings else step.credit
    numbers = measure(step, credit, colour)
    reach = scales(step).get(colour, 1.0)
    length = int(step.rollouts.lengths[row])
    starts = segment_starts(credit.segment_ids)[row, :length]
    shapes, words = [], []
    x, y = PAD, 58
    for at, text in enumerate(token_texts(step, row)):
        fill = paper(colour_class(numbers[row, at], reach) if numbers is not None else 7)
        for number, piece in enumerate(text.split("\n")):
            size = CHAR * columns(piece)
            if number or (x + size > WIDTH - PAD and x > PAD):
                x, y = PAD, y + LINE
            box = f'x="{x:.1f}" y="{y - 14}" width="{max(size, 3):.1f}" height="18"'
            shapes.append(f'<rect {box} fill="{fill}"/>')
            if number == 0 and starts[at]:
                bar = f'x="{x - 1:.1f}" y="{y - 15}" width="2" height="20"'
                shapes.append(f'<rect {bar} fill="#1d1f23"/>')
            place = f'x="{x:.1f}" y="{y}" textLength="{size:.1f}"'
            if piece:
                words.append(
                    f'<text {place} xml:space="preserve">{escape(printable(piece))}</text>'
                )
            x += size
    height = y + 40
    note = f"{colour} {-reach:.3g} … {reach:.3g}, clipped; a bar starts a segment"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" style="font:13px ui-monospace,Menlo,Consolas,monospace;'
        f'fill:#1d1f23"><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="{PAD}" y="22" font-weight="bold">{escape(printable(title))}</text>'
        f'<text x="{PAD}" y="40" fill="#5c5f66">{escape(note)}</text>'
        f"{''.join(shapes)}{''.join(words)}</svg>"
    )


def columns(text: str) -> int:
    """How many columns a monospaced text takes.

    >>> columns("a日")
    3
    """
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    marks = sum(unicodedata.combining(char) > 0 for char in text)
    return len(text) + wide - marks


def paper(colour: int) -> str:
    """The colour of a class on white: orange below 7, blue above."""
    strength = 0.62 * abs(colour - 7) / 7
    base = np.array(ORANGE if colour < 7 else BLUE)
    r, g, b = np.round(255 - (255 - base) * strength).astype(int)
    return f"rgb({r},{g},{b})"
