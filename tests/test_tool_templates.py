"""The chat templates that TRL knows: calls are read and answers written as TRL does."""

from types import SimpleNamespace

import pytest
from tiny import byte_tokenizer

from spo.generation.tool_chat import ToolChat

chat_templates = pytest.importorskip("trl.chat_template_utils")
grpo = pytest.importorskip("trl.trainer.grpo_trainer")

ENDS = {"llama3": "<|eot_id|>", "gptoss": "<|call|>"}
KNOWN_BY_THEIR_TAGS = ["qwen2_5", "qwen3", "qwen3_instruct_2507"]
WITH_A_RESPONSE_TEMPLATE = ["llama3_2", "qwen3_5_think", "gptoss", "lfm2_2_5", "nemotron_3_nano"]
ANSWERS = [
    {"role": "tool", "name": "calc", "content": "3"},
    {"role": "tool", "name": "calc", "content": "two\nlines"},
]
TURNS = [
    'Well.\n<tool_call>\n{"name": "calc", "arguments": {"a": "1"}}\n</tool_call><|im_end|>',
    "<tool_call>{</tool_call><|im_end|>",
    "Only text.<|im_end|>",
    'Cut <tool_call>\n{"name": "calc", "argum',
    "<think>\nso\n</think>\n\nIt is 3.<|im_end|>",
]


def tokenizer(name: str):
    """Bytes and the marks of the template, each one token."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = getattr(chat_templates, f"{name}_chat_template")
    end = next((end for start, end in ENDS.items() if name.startswith(start)), "<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": [end, "<|im_start|>"]})
    tokenizer.eos_token = end
    return tokenizer


def chat_of(tokenizer) -> ToolChat:
    return ToolChat(tokenizer, (tokenizer.eos_token_id,), {})


@pytest.mark.parametrize("name", [*KNOWN_BY_THEIR_TAGS, *WITH_A_RESPONSE_TEMPLATE])
def test_answers_are_the_tokens_that_trl_appends(name):
    theirs = tokenizer(name)
    preserving = chat_templates.is_chat_template_prefix_preserving(theirs)
    template = None if preserving else chat_templates.get_training_chat_template(theirs)
    trainer = SimpleNamespace(
        processing_class=theirs,
        _tokenizer=theirs,
        chat_template=template,
        chat_template_kwargs={},
        _is_vlm=False,
    )
    expected = grpo.GRPOTrainer._get_tool_suffix_ids(trainer, ANSWERS)
    ours = tokenizer(name)
    if name in WITH_A_RESPONSE_TEMPLATE:
        chat_templates.add_response_schema(ours)
    assert chat_of(ours).answer_ids(ANSWERS, {}) == expected


@pytest.mark.parametrize("name", KNOWN_BY_THEIR_TAGS)
@pytest.mark.parametrize("turn", TURNS)
def test_turns_are_read_as_by_the_response_template_of_trl(name, turn):
    ours, theirs = tokenizer(name), chat_templates.add_response_schema(tokenizer(name))
    question = [{"role": "user", "content": "1+2?"}]
    prompt = ours.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    ids = ours(turn)["input_ids"]
    expected = chat_templates.parse_response(theirs, ids, prefix=prompt)
    assert chat_of(ours).parse(ids, prompt, []) == expected


@pytest.mark.parametrize("name", WITH_A_RESPONSE_TEMPLATE)
def test_a_template_of_another_kind_asks_for_a_response_template(name):
    with pytest.raises(ValueError, match=r"set tokenizer\.response_template"):
        chat_of(tokenizer(name))
