"""The text of a chat, as templates write it -> its turns. Pure.

Rollout files hold the prompt as the model saw it: one text with the template's marks. The page
shows who said what.
"""

import re

MARKS = (
    # ChatML (Qwen, SmolLM, OLMo, …)
    re.compile(r"<\|im_start\|>(?P<role>\w+)\n(?P<text>.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL),
    # Llama 3
    re.compile(
        r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n(?P<text>.*?)"
        r"(?:<\|eot_id\|>|\Z)",
        re.DOTALL,
    ),
    # Gemma
    re.compile(r"<start_of_turn>(?P<role>\w+)\n(?P<text>.*?)(?:<end_of_turn>\s*|\Z)", re.DOTALL),
    # Phi, Zephyr, TinyLlama
    re.compile(
        r"<\|(?P<role>system|user|assistant)\|>\n?(?P<text>.*?)"
        r"(?:<\|end\|>\s*|</s>\s*|\Z|(?=<\|(?:system|user|assistant)\|>))",
        re.DOTALL,
    ),
    # DeepSeek, Mistral
    re.compile(
        r"<｜(?P<role>User|Assistant)｜>(?P<text>.*?)(?=<｜(?:User|Assistant)｜>|\Z)", re.DOTALL
    ),
    re.compile(r"\[(?P<role>INST)\](?P<text>.*?)\[/INST\]", re.DOTALL),
)
ROLES = {"INST": "user", "User": "user", "Assistant": "assistant", "model": "assistant"}


def turns(text: str) -> list[dict[str, str]]:
    """[{"role", "text"}] of a chat prompt; one turn without a role where no template is known.

    A last turn without text is the template's invitation to answer and is left out.

    >>> turns("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n")
    [{'role': 'user', 'text': 'Hi'}]
    >>> turns("2 + 2 =")
    [{'role': '', 'text': '2 + 2 ='}]
    """
    for pattern in MARKS:
        found = list(pattern.finditer(text))
        if not found:
            continue
        said = [
            {"role": ROLES.get(turn["role"], turn["role"]), "text": turn["text"].strip("\n")}
            for turn in found
        ]
        before = text[: found[0].start()].strip()
        if before and not re.fullmatch(r"(<[^<>\s]+>)+", before):  # more than a start token
            said.insert(0, {"role": "", "text": before})
        if len(said) > 1 and not said[-1]["text"].strip():
            said.pop()
        return said
    return [{"role": "", "text": text}]


def last_words(text: str, size: int = 90) -> str:
    """The end of what a prompt asks, which tells prompts with one beginning apart.

    >>> last_words("Answer briefly. What is 2 + 2?", size=14)
    '…hat is 2 + 2?'
    """
    said = [turn for turn in turns(text) if turn["role"] in ("", "user")] or turns(text)
    words = " ".join(said[-1]["text"].split())
    return words if len(words) <= size else "…" + words[1 - size :]


def as_text(messages: list[dict], is_prompt: bool) -> str:
    """TRL's lists of messages as one text: ChatML for a prompt; the answer alone for a completion
    of one message.

    >>> as_text([{"role": "assistant", "content": "4"}], is_prompt=False)
    '4'
    """
    said = [(message or {}) for message in messages]
    if not is_prompt and len(said) == 1:
        return said[0].get("content") or ""
    marked = "".join(
        f"<|im_start|>{one.get('role') or 'unknown'}\n{one.get('content') or ''}<|im_end|>\n"
        for one in said
    )
    return marked
