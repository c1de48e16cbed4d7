"""What a person may hand to SPOTrainer: told at construction, or simply right."""

import pytest
import tiny_runs as runs
import torch
import transformers
from datasets import Dataset, Features, Image, Value
from tiny import byte_tokenizer

USER = {"role": "user", "content": "hi"}


def test_the_history_has_an_entry_for_every_logged_step_and_evaluation(tmp_path):
    logged = []

    class Listen(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            logged.append((state.global_step, logs.get("reward", logs.get("eval_reward"))))

    trainer = runs.make_trainer(
        tmp_path,
        max_steps=5,
        logging_steps=2,
        eval_dataset=runs.prompts(3),
        callbacks=[Listen],
    )
    trainer.train()
    history = trainer.state.log_history
    # the last step is logged whatever its number, and how long it all took
    assert [entry["step"] for entry in history] == [0, 2, 4, 5, 5, 5]
    assert logged == [(e["step"], e.get("reward", e.get("eval_reward"))) for e in history]
    assert ["eval_reward" in entry for entry in history] == [True, *[False] * 3, True, False]
    assert history[-1]["train_runtime"] > 0


def test_trained_weights_in_16_bits_are_told(tmp_path):
    with pytest.warns(UserWarning, match="trained weights are torch.bfloat16"):
        runs.make_trainer(tmp_path, model=runs.policy().to(torch.bfloat16))


def test_a_processor_is_taken_for_its_tokenizer(tmp_path):
    class Processor:
        tokenizer = byte_tokenizer(chat_template=True)

    dataset = Dataset.from_dict({"prompt": [[USER]] * 4})
    trainer = runs.make_trainer(
        tmp_path, processing_class=Processor(), train_dataset=dataset, max_steps=1
    )
    trainer.train()
    assert trainer.train_dataset[0]["prompt_text"] == "<bos><user>hi<eos><assistant>"


def test_other_arguments_are_named(tmp_path):
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="args is a TrainingArguments; give an SPOConfig"):
        runs.SPOTrainer(runs.policy(), runs.low_bytes, args, runs.prompts())


def test_a_prefill_that_the_template_deletes_names_its_row(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{m.role}}>{{m.content.split('</think>')[-1]}}{% endfor %}"
    )
    begun = {"role": "assistant", "content": "<think>a</think>So"}
    dataset = Dataset.from_dict({"prompt": [[USER, begun]] * 4})
    with pytest.raises(ValueError, match="chat template refused row 0 of column 'prompt'") as error:
        runs.make_trainer(tmp_path, train_dataset=dataset, processing_class=tokenizer)
    assert "\n" not in str(error.value)


TEMPLATE = (
    "{% if tools %}TOOLS{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}<assistant>"
    "{% if enable_thinking is false %}<think></think>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_tools_and_template_arguments_reach_the_chat_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows = {"prompt": [[USER]] * 4}

    def texts(columns, **settings):
        trainer = runs.make_trainer(
            tmp_path / "run",
            train_dataset=Dataset.from_dict(rows | columns),
            processing_class=tokenizer,
            **settings,
        )
        return trainer.train_dataset["prompt_text"]

    assert texts({})[0] == "<user>hi<assistant>"
    off = {"enable_thinking": False}
    assert texts({}, chat_template_kwargs=off)[0].endswith("<think></think>")
    by_row = [{"enable_thinking": True}, {"enable_thinking": False}] * 2
    thinking = texts({"chat_template_kwargs": by_row}, chat_template_kwargs=off)
    assert ["think" in text for text in thinking] == [False, True, False, True]
    with_tools = texts({"tools": [[TOOL], None, [TOOL], None]})
    assert "<user>hi" in with_tools[0]
    assert '"name": "add"' in with_tools[0]
    assert with_tools[1] == "<user>hi<assistant>"


@pytest.mark.parametrize("column", ["image", "images"])
def test_images_are_refused_aloud(column, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["a"] * 4, column: ["x.png"] * 4})
    with pytest.raises(ValueError, match=f"Column '{column}' holds images"):
        runs.make_trainer(tmp_path, train_dataset=dataset)


def test_images_are_known_by_their_type_too(tmp_path):
    features = Features({"prompt": Value("string"), "picture": Image()})
    dataset = Dataset.from_dict({"prompt": ["a"] * 4, "picture": [None] * 4}, features=features)
    with pytest.raises(ValueError, match="Column 'picture' holds images"):
        runs.make_trainer(tmp_path, train_dataset=dataset)
