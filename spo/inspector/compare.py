"""One prompt at two steps: completions aligned token by token; and one completion under GRPO, SPO
and PPO. Pure: -> HTML."""

import html
from difflib import SequenceMatcher

import numpy as np

from spo.inspector.history import History
from spo.inspector.markup import colour_class, completion_html, token_texts
from spo.inspector.step import Step
from spo.inspector.whatif import what_if

MOST_TOKENS = 1500
MODES = {"grpo": "GRPO: per completion", "spo": "SPO: per segment", "ppo": "PPO: per token"}


def steps_with(history: History, prompt_index: int) -> list[tuple[int, int]]:
    """(step, group) of every step that holds a prompt of the data set."""
    return [
        (line["step"], group)
        for line in history.lines
        for group, prompt in enumerate(line["prompt_index"])
        if prompt == prompt_index
    ]


def diff_html(before: Step, row_before: int, after: Step, row_after: int) -> str:
    """Tokens in common coloured by the change of their advantage, others struck or underlined."""
    old, new = (ids(step, row) for step, row in ((before, row_before), (after, row_after)))
    old_texts, new_texts = token_texts(before, row_before), token_texts(after, row_after)
    old_a, new_a = (
        step.credit.token_advantages[row]
        for step, row in ((before, row_before), (after, row_after))
    )
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changes = np.concatenate(
        [new_a[j1:j2] - old_a[i1:i2] for tag, i1, i2, j1, j2 in blocks if tag == "equal"] or [[]]
    )
    reach = float(np.percentile(np.abs(changes), 95)) if changes.size else 1.0
    pieces = []
    for tag, i1, i2, j1, j2 in blocks:
        if tag == "equal":
            for i, j in zip(range(i1, i2), range(j1, j2), strict=True):
                colour = colour_class(float(new_a[j] - old_a[i]), reach or 1.0)
                title = f"A {old_a[i]:+.3g} → {new_a[j]:+.3g}"
                pieces.append(span("span", f"t c{colour}", title, new_texts[j]))
            continue
        pieces += [span("del", "t", f"A {old_a[i]:+.3g}", old_texts[i]) for i in range(i1, i2)]
        pieces += [span("ins", "t", f"A {new_a[j]:+.3g}", new_texts[j]) for j in range(j1, j2)]
    same = int(sum(i2 - i1 for tag, i1, i2, *_ in blocks if tag == "equal"))
    facts = (
        f"{same} tokens in common, {len(old) - same} only before, {len(new) - same} only after. "
        "Colour: change of the advantage; point at a token for both."
    )
    return (
        f'<div class="spo small"><p class="hint">{facts}</p>'
        f'<div class="text diff" dir="auto">{"".join(pieces)}</div></div>'
    )


def span(tag: str, kind: str, title: str, text: str) -> str:
    return f'<{tag} class="{kind}" title="{title}">{html.escape(text)}</{tag}>'


def ids(step: Step, row: int) -> list[int]:
    length = min(int(step.rollouts.lengths[row]), MOST_TOKENS)
    return step.rollouts.token_ids[row, :length].tolist()


def modes_html(step: Step, row: int) -> str:
    """One completion, its credit under the three methods side by side, on one scale."""
    modes = MODES if step.rollouts.token_values is not None else {"grpo": "", "spo": ""}
    columns = []
    for mode in modes:
        credit = what_if(step, {"mode": mode})
        count = int(credit.segment_ids[row].max(initial=-1)) + 1
        plural = "" if count == 1 else "s"
        columns.append(
            f'<section data-mode="{mode}"><h3>{MODES[mode]}</h3>'
            f'<p class="count">{count} segment{plural}</p>{completion_html(step, row, credit)}'
            "</section>"
        )
    return f'<div class="spo small"><div class="columns modes">{"".join(columns)}</div></div>'
