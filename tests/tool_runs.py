"""Runs with tools on tiny models: shared by tests in this process and in others."""

from typing import Any

import tiny_runs as runs
from datasets import Dataset
from tiny import byte_tokenizer

from spo import SPOTrainer

TEMPLATE = """\
{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}
{%- for m in messages %}
{{- '<' + m.role + '>' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<eos>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""


def tokenizer():
    with_template = byte_tokenizer()
    with_template.chat_template = TEMPLATE
    return with_template


def without(*, template=TEMPLATE, response=None):
    """A tokenizer with another chat template, or a response template."""
    changed = tokenizer()
    changed.chat_template, changed.response_template = template, response
    return changed


BRACKETS = TEMPLATE.replace("<tool_call>", "[CALL]").replace("</tool_call>", "[/CALL]")
BRACKETS_RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open": "[CALL]",
            "close": "[/CALL]",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"content": "text", "close": "<eos>"},
    },
}
EVERY_LETTER_CALLS = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<assistant>",
    "fields": {
        "tool_calls": {
            "open_pattern": "[a-z]",
            "close_pattern": "[A-Z]|$",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "again", "arguments": {"text": "{content}"}},
            },
        },
        "content": {"content": "text", "close": "<eos>"},
    },
}
"""By which a policy of random weights calls again and again."""


def chats(count: int = 4, **columns: Any) -> Dataset:
    rows = [[{"role": "user", "content": "1 + " * (i % 3) + str(i)}] for i in range(count)]
    return Dataset.from_dict({"prompt": rows, **columns})


def again(text: str) -> str:
    """Say it again.

    Args:
        text: what
    """
    if "z" in text:
        raise ValueError("no z")
    return text[:3] + "!"


def sampled(folder: Any, **given: Any) -> SPOTrainer:
    """A run whose policy samples its calls."""
    settings = {"tools": [again], "max_completion_length": 60, "max_steps": 3}
    settings |= {"processing_class": without(template=BRACKETS, response=EVERY_LETTER_CALLS)}
    settings |= {"reward_funcs": runs.low_bytes, "value_model": "policy"}
    return runs.make_trainer(folder, train_dataset=chats(), **settings | given)
