"""What the critic read beside a completion -> what the reader shows of it. Pure."""

from typing import Any

import numpy as np

from spo.inspector.step import Step
from spo.inspector.text import utf16_places
from spo.values.alignment import followed_items

ORIGINS = {
    "peer": "a right sibling of this step",
    "memory": "an earlier right completion of this prompt",
}


def reference_view(step: Step, row: int) -> dict[str, Any] | None:
    """The text that the critic read, where it came from, and the items in which the completion
    follows it; None where it read none.

    Returns:
        `text`, `origin` in words, and `items`: [begin, end in the completion, begin, end in the
        reference] in UTF-16 units, by their place in the completion.
    """
    references = step.rollouts.references
    text = references[row] if references else None
    if text is None:
        return None
    completion = step.rollouts.completions[row]
    spans = {
        span for kind in step.reference_items for span in followed_items(completion, text, kind)
    }
    found, done = [], 0
    for span in sorted(spans, key=lambda span: span[2:]):
        if span[2] >= done:  # kinds of items may overlap: an identifier and a word in it
            found.append(span)
            done = span[3]
    places, in_reference = utf16_places(completion), utf16_places(text)
    items = np.array(sorted(found), dtype=np.int64).reshape(-1, 4)
    items = np.hstack([places[items[:, :2]], in_reference[items[:, 2:]]])
    return {"text": text, "origin": origin_words(step, row), "items": items.tolist()}


def origin_words(step: Step, row: int) -> str:
    """Where a reference came from, in words."""
    origins = step.rollouts.reference_origins
    origin = origins[row] if origins else None
    if origin is None:
        return "of unknown origin"
    return ORIGINS.get(origin, f"column {origin}")
