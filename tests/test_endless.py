"""Models that never stop: told before the run, and when most of a step is cut off."""

import warnings

import pytest
import tiny
import tiny_runs as runs
from datasets import Dataset

from spo.networks.checks import warn_endless

CHAT = Dataset.from_dict({"prompt": [[{"role": "user", "content": "hi"}]] * 8})
OTHER_END = tiny.CHAT_TEMPLATE.replace("eos_token", "'<|im_end|>\\n'")
"""What an instruction-tuned sibling ends a turn with; here it is no token of its own."""


def tokenizer(template=tiny.CHAT_TEMPLATE):
    made = tiny.byte_tokenizer(chat_template=True)
    made.chat_template = template
    return made


def told(*given):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_endless(*given)
    return [str(warning.message) for warning in caught]


def test_a_template_whose_end_of_turn_ends_nothing_is_told():
    (message,) = told((tiny.EOS,), tokenizer(OTHER_END), CHAT)
    assert "ends a turn with '<|im_end|>', which is no end token ('<eos>')" in message
    assert "max_completion_length" in message
    assert told((), tokenizer(), CHAT)


@pytest.mark.parametrize(
    ("template", "dataset"),
    [
        (tiny.CHAT_TEMPLATE, CHAT),
        (OTHER_END, Dataset.from_dict({"prompt": ["hi"]})),  # text has no turns
        (OTHER_END.replace("'<|im_end|>\\n'", "''"), CHAT),  # nothing is written behind
        ("{{ raise_exception('one turn only') }}", CHAT),
        (OTHER_END.replace("'<|im_end|>", "eos_token + '<|im_end|>"), CHAT),
        (tiny.CHAT_TEMPLATE, CHAT.to_iterable_dataset()),
    ],
)
def test_others_are_not(template, dataset):
    assert not told((tiny.EOS,), tokenizer(template), dataset)


def test_the_trainer_looks(tmp_path):
    with pytest.warns(UserWarning, match="which is no end token"):
        runs.make_trainer(
            tmp_path / "run", train_dataset=CHAT, processing_class=tokenizer(OTHER_END)
        )


# --- cut off ---------------------------------------------------------------------------------
def cut_off(share):
    """A rollout function of which this share of completions does not end."""

    def complete(prompts, trainer):
        ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        ends = [70 if i < share * len(ids) else tiny.EOS for i in range(len(ids))]
        return {"prompt_ids": ids, "completion_ids": [[65 + e % 7, e] for e in ends]}

    return complete


@pytest.mark.parametrize(("share", "count"), [(1.0, 1), (0.75, 1), (0.5, 0), (0.0, 0)])
def test_a_step_of_which_most_is_cut_off_is_told_once(share, count, tmp_path):
    trainer = runs.make_trainer(tmp_path / "run", rollout_func=cut_off(share), max_steps=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    messages = [str(w.message) for w in caught if "cut off" in str(w.message)]
    assert len(messages) == count
    for message in messages:
        assert f"{share:.0%} of the completions" in message
        assert "raise max_completion_length=8, set mask_truncated_completions" in message
