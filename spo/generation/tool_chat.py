"""How a chat template writes tools: a turn's ids -> its calls; answers -> the ids that follow."""

import re
from typing import Any

from jinja2 import TemplateError

from spo.data import render

MARK = "a7f3mark"
"""Stands in renderings made to see where a template puts what."""

CALL_IN_TAGS = re.compile(
    r'<tool_call>\s*\{"name": "calc", "arguments": \{"at": "a7f3mark"\}\}\s*</tool_call>'
)


class ToolChat:
    """The chat template of a run's tokenizer, and how it writes calls and answers.

    Calls are read with the tokenizer's own `response_template` (Transformers' response parsing);
    templates without one are known by what they write where that is JSON in <tool_call> tags.

    Raises:
        ValueError: the template cannot show tools, or nobody says how it writes a call.
    """

    def __init__(
        self, processing_class: Any, eos_token_ids: tuple[int, ...], template_kwargs: dict[str, Any]
    ):
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.template_kwargs = template_kwargs
        self.ends = {self.tokenizer.decode([i]): i for i in eos_token_ids}
        answer = {"role": "tool", "name": "calc", "content": f"{MARK} says 7"}
        text = self._render_answers([answer], template_kwargs)
        if "calc" not in text or text.count(MARK) < 2:
            raise ValueError(
                "The chat template leaves out a tool's call or its answer: tools need a template "
                "that shows messages with tool_calls and messages of the role 'tool'."
            )
        self.response_template = getattr(self.tokenizer, "response_template", None)
        if self.response_template is None:
            self.response_template = self._json_in_tags(text)
        self.answer_ids([answer], template_kwargs)

    def _json_in_tags(self, text: str) -> dict[str, Any]:
        """The response template of a chat template that writes <tool_call>{...}</tool_call>."""
        question = [{"role": "user", "content": "?"}]
        asked, plain = (self._apply(question, self.template_kwargs, on) for on in (True, False))
        header = asked.removeprefix(plain)
        if not (CALL_IN_TAGS.search(text) and header and asked != header):
            raise ValueError(
                "Nobody says how this chat template writes a tool call: set "
                "tokenizer.response_template (Transformers' response parsing), or use a template "
                'that writes <tool_call>{"name": ..., "arguments": {...}}</tool_call>.'
            )
        call = {"type": "function", "function": "{content}"}
        return {
            "defaults": {"role": "assistant"},
            "start_anchor": header,
            "fields": {
                "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
                "tool_calls": {
                    "open": "<tool_call>",
                    "close": "</tool_call>",
                    "repeats": True,
                    "content": "json",
                    "transform": call,
                },
                "content": {"close": list(self.ends), "content": "text"},
            },
        }

    def parse(
        self, ids: list[int], prefix_ids: list[int], schemas: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """A turn as a chat message; one whose calls cannot be read is plain text, as in TRL."""
        try:
            message = self.tokenizer.parse_response(
                ids, self.response_template, prefix=prefix_ids, tools=schemas
            )
            calls = [_function(call) for call in message.get("tool_calls") or []]
        except (ValueError, TypeError, KeyError, RecursionError):  # JSON nested without end
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            return {"role": "assistant", "content": text}
        content = message.get("content") or ""
        for end in self.ends:
            content = content.removesuffix(end)
        without = {k: v for k, v in message.items() if k != "tool_calls"}
        found = {"tool_calls": calls} if calls else {}
        return without | {"role": "assistant", "content": content} | found

    def answer_ids(
        self, answers: list[dict[str, Any]], template_arguments: dict[str, Any]
    ) -> list[int]:
        """What the template writes between the end token of a turn that called tools and the first
        token of the next: the tools' messages and the assistant's header."""
        text = self._render_answers(answers, template_arguments)
        after = text.index(MARK) + len(MARK)
        found = [(text.find(end, after), -len(end), end) for end in self.ends if end]
        found = [(at, length, end) for at, length, end in found if at >= 0]
        if not found:
            raise ValueError(
                f"The chat template ends a turn that calls a tool with none of {list(self.ends)}: "
                "the generation config's eos_token_id lacks the token that does."
            )
        start, _, end = min(found)
        # tokenized behind the end token, as what stands there is tokenized in a whole chat
        ids = self.tokenizer(text[start:], add_special_tokens=False)["input_ids"]
        if ids[:1] != [self.ends[end]]:
            raise ValueError(f"The end token {end!r} is no token of its own in a chat.")
        return list(ids[1:])

    def prompt(
        self, messages: list[dict[str, Any]], template_arguments: dict[str, Any]
    ) -> tuple[str, list[int]]:
        """A prompt as the model sees it, and its tokens."""
        text = render(messages, self.tokenizer, "the prompt of an environment", template_arguments)
        return text, list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render_answers(self, answers: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
        """A short chat with one call, marked in its argument, and these answers."""
        call = {"name": answers[0]["name"], "arguments": {"at": MARK}}
        chat = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]},
            *answers,
        ]
        chat[1]["tool_calls"][0]["function"] = call
        return self._apply(chat, arguments, True)

    def _apply(self, chat: list[dict[str, Any]], arguments: dict[str, Any], ask: bool) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("Tools need a tokenizer with a chat template that shows them.")
        try:
            return self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=ask, **arguments
            )
        except (TemplateError, TypeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"The chat template cannot show tools: {reason}.") from error


def _function(call: Any) -> dict[str, Any]:
    """A call as chat templates take it; raises where it has no name."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a call without a name")
    arguments = function.get("arguments")
    arguments = {} if arguments is None else arguments
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
