"""Tools and environments: calls are run, answers follow exactly, only the policy's words train."""

import asyncio
import dataclasses
import json
import time

import numpy as np
import pytest
import tiny_runs as runs
from tiny import EOS, byte_tokenizer
from tool_runs import BRACKETS, BRACKETS_RESPONSE, TEMPLATE, chats, sampled, tokenizer, without

from spo.completions import Completions
from spo.generation.engine import SamplingParams
from spo.generation.tool_chat import ToolChat
from spo.generation.toolbox import Toolbox
from spo.generation.tools import TURN, ToolUse
from spo.prompts import PromptBatch


def calc(expression: str) -> str:
    """Work out a sum.

    Args:
        expression: such as 1+2
    """
    if not set(expression) <= set("0123456789+- "):
        raise ValueError(f"no sum: {expression}")
    return str(sum(map(int, expression.replace("-", "+-").split("+"))))


def call(name, **arguments):
    return f'<tool_call>{{"name": "{name}", "arguments": {json.dumps(arguments)}}}</tool_call>'


class Script:
    """Says of each row the next of its turns, and remembers what it was asked."""

    def __init__(self, *turns, ends=True, numbers=True):
        self.turns, self.ends, self.numbers = turns, ends, numbers
        self.asked: list[PromptBatch] = []

    def __call__(self, prompts, params, step):
        self.asked.append(prompts)
        texts = [self.turns[min(row // TURN, len(self.turns) - 1)] for row in prompts.rows]
        ids = [[*text.encode(), EOS][: params.max_new_tokens] for text in texts]
        numbers = [[-0.5 - 0.01 * t for t in range(len(row))] for row in ids]
        truncated = [row[-1] != EOS for row in ids]
        given = {"token_logprobs": numbers, "token_entropies": numbers} if self.numbers else {}
        return Completions(
            prompts.prompt_ids, ids, truncated, **given, token_logprobs_sampler=numbers
        )

    def load(self, policy):
        """Nobody's weights are used."""


def prompts_of(chat, *texts, **columns):
    messages = [[{"role": "user", "content": text}] for text in texts]
    shown = [chat.prompt(m, {}) for m in messages]
    rows = np.arange(len(texts))
    ids = [list(ids) for _, ids in shown]
    return PromptBatch(1, rows, rows, messages, [text for text, _ in shown], ids, columns)


def generator(*turns, tools=(calc,), factory=None, timeout=5.0, most=None, **script):
    chat = ToolChat(tokenizer(), (EOS,), {})
    toolbox = Toolbox(list(tools), factory, timeout)
    return ToolUse(Script(*turns, **script), toolbox, chat, most)


def complete(use, *texts, room=400, **columns):
    given = prompts_of(use.chat, *(texts or ("1+2?",)), **columns)
    return use(given, SamplingParams(room, (EOS,)), 1)


def text_of(ids):
    return byte_tokenizer().decode(ids)


def words(completions, row=0, policy=True):
    """What the policy said, or what the tools did."""
    pairs = zip(completions.token_ids[row], completions.action_mask[row], strict=True)
    return text_of([i for i, mine in pairs if mine == policy])


# --- what follows what ------------------------------------------------------------------------


def test_a_call_is_answered_and_the_policy_goes_on():
    asks = "Let me see. " + call("calc", expression="1+2")
    completions = complete(generator(asks, "It is 3."))
    answer = "\n<tool>3<eos>\n<assistant>"
    assert text_of(completions.token_ids[0]) == f"{asks}<eos>{answer}It is 3.<eos>"
    assert words(completions, policy=False) == answer
    function = {"name": "calc", "arguments": {"expression": "1+2"}}
    assert completions.messages == [
        [
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [{"type": "function", "function": function}],
            },
            {"role": "tool", "name": "calc", "content": "3"},
            {"role": "assistant", "content": "It is 3."},
        ]
    ]
    assert completions.tool_calls == [1]
    assert completions.tool_failures == [0]
    assert completions.truncated == [False]


def test_the_tokens_are_those_of_the_whole_chat_in_the_template():
    asks = call("calc", expression="1+2").replace("<tool_call>", "<tool_call>\n")
    asks = asks.replace("</tool_call>", "\n</tool_call>")  # as the template writes it
    use = generator(asks, "3.")
    completions = complete(use)
    chat = [{"role": "user", "content": "1+2?"}, *completions.messages[0]]
    whole = use.chat.tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
    ids = completions.prompt_ids[0] + completions.token_ids[0]
    assert ids == whole[: len(ids)]
    assert text_of(whole[len(ids) :]) == "\n"


def test_a_later_turn_is_asked_behind_exactly_what_stands_before_it():
    use = generator(call("calc", expression="1+2"), call("calc", expression="4"), "end")
    completions = complete(use, "a", "b")
    first, second, third = use.inner.asked
    for asked, before in ((second, first), (third, second)):
        for row in range(2):
            assert asked.prompt_ids[row][: len(before.prompt_ids[row])] == before.prompt_ids[row]
    whole = completions.prompt_ids[1] + completions.token_ids[1]
    assert third.prompt_ids[1] == whole[: len(third.prompt_ids[1])]
    assert len({*first.rows, *second.rows, *third.rows}) == 6  # each turn draws anew


def test_several_calls_of_a_turn_are_answered_in_their_order():
    async def later(text: str) -> str:
        """Say it later.

        Args:
            text: what
        """
        await asyncio.sleep(0.01)
        return text.upper()

    turn = call("later", text="x") + call("calc", expression="2+2") + call("later", text="y")
    completions = complete(generator(turn, "ok", tools=(calc, later)))
    answers = [m["content"] for m in completions.messages[0] if m["role"] == "tool"]
    assert answers == ["X", "4", "Y"]
    assert words(completions, policy=False) == "\n<tool>X<eos>\n<tool>4<eos>\n<tool>Y<eos>\n" + (
        "<assistant>"
    )


def test_numbers_of_the_engine_stay_with_their_tokens():
    completions = complete(generator(call("calc", expression="1+2"), "It is 3."))
    actions = np.array(completions.action_mask[0])
    for name in ("token_logprobs", "token_entropies", "token_logprobs_sampler"):
        numbers = np.array(getattr(completions, name)[0])
        assert not numbers[~actions].any()
        second = np.flatnonzero(~actions)[-1] + 1
        np.testing.assert_allclose(numbers[second : second + 2], [-0.5, -0.51])
    assert complete(generator("x", numbers=False)).token_logprobs is None


def test_a_template_that_forgets_thoughts_leaves_the_sampled_ids_alone():
    """Qwen 3's writes <think></think> into the last turn only."""
    chat = tokenizer()
    chat.chat_template = TEMPLATE.replace(
        "(m.content or '')",
        "('<think></think>' if loop.last and m.role == 'assistant' else '') + (m.content or '')",
    )
    asks = "<think>hm</think>" + call("calc", expression="1+2")
    use = generator(asks, "3")
    use.chat = ToolChat(chat, (EOS,), {})
    completions = complete(use)
    assert text_of(completions.token_ids[0]) == f"{asks}<eos>\n<tool>3<eos>\n<assistant>3<eos>"
    assert completions.messages[0][0]["reasoning_content"] == "hm"


def test_a_call_in_a_thought_is_none():
    completions = complete(generator(f"<think>{call('calc', expression='1')}</think>No."))
    assert completions.tool_calls == [0]
    assert completions.messages[0][0]["content"] == "No."


# --- what goes wrong --------------------------------------------------------------------------


def slow(seconds: float) -> str:
    """Wait.

    Args:
        seconds: how long
    """
    time.sleep(seconds)
    return "waited"


async def slow_async(seconds: float) -> str:
    """Wait.

    Args:
        seconds: how long
    """
    await asyncio.sleep(seconds)
    return "waited"


def leave(code: int) -> None:
    """End the program.

    Args:
        code: of the end
    """
    raise SystemExit(code)


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (call("calc", expression="os.system()"), "no sum: os.system()"),
        (call("calc", wrong="1"), "calc() got an unexpected keyword argument 'wrong'"),
        (call("calculator", expression="1"), "Tool calculator not found."),
        (call("slow", seconds=60), "took longer than 0.3 seconds"),
        (call("slow_async", seconds=60), "took longer than 0.3 seconds"),
        (call("leave", code=3), "3"),
    ],
    ids=["raises", "argument", "name", "hangs", "async hangs", "exits"],
)
def test_a_tool_that_fails_says_so_to_the_policy(turn, error):
    begun = time.monotonic()
    tools = (calc, slow, slow_async, leave)
    completions = complete(generator(turn, "Oh.", tools=tools, timeout=0.3))
    assert time.monotonic() - begun < 20
    assert completions.messages[0][1]["content"] == str({"error": error})
    assert completions.messages[0][2]["content"] == "Oh."
    assert completions.tool_failures == completions.tool_calls == [1]


@pytest.mark.parametrize(
    "turn",
    [
        '<tool_call>{"name": "calc", "arguments": </tool_call>',
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
    ids=["half", "list", "nameless", "nested"],
)
def test_a_call_that_cannot_be_read_is_plain_text(turn):
    completions = complete(generator(turn), room=200_000)
    assert completions.messages == [[{"role": "assistant", "content": turn}]]
    assert completions.tool_calls == [0]


def test_arguments_that_are_no_dictionary_fail_the_call():
    turn = '<tool_call>{"name": "calc", "arguments": "1+1"}</tool_call>'
    assert complete(generator(turn, "Oh.")).tool_failures == [1]


# --- when it ends -----------------------------------------------------------------------------


def test_calls_end_after_the_rounds_that_are_allowed():
    completions = complete(generator(call("calc", expression="1"), most=2))
    assert completions.tool_calls == [2]
    roles = [message["role"] for message in completions.messages[0]]
    assert roles == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert completions.truncated == [False]


@pytest.mark.parametrize("room", [30, 70, 95, 100, 105, 300])
def test_no_completion_is_longer_than_it_may_be(room):
    completions = complete(generator(call("calc", expression="1+2")), room=room)
    assert len(completions.token_ids[0]) <= room
    assert completions.truncated == [True]
    assert completions.action_mask[0][-1]  # no answer without a word behind it


def test_rows_do_not_wait_for_each_other_or_share_answers():
    class OneAsks(Script):
        def __call__(self, prompts, params, step):
            said = super().__call__(prompts, params, step)
            pairs = zip(prompts.rows, said.token_ids, strict=True)
            quiet = [[*b"done", EOS] if row % 2 else ids for row, ids in pairs]
            return Completions(prompts.prompt_ids, quiet, [False] * len(quiet))

    use = generator()
    use.inner = OneAsks(call("calc", expression="1+2"), "It is 3.")
    completions = complete(use, "a", "b", "c")
    assert [words(completions, row)[-9:] for row in (0, 2)] == ["is 3.<eos>"[-9:]] * 2
    assert text_of(completions.token_ids[1]) == "done<eos>"
    assert [len(asked) for asked in use.inner.asked] == [3, 2]


# --- environments -----------------------------------------------------------------------------


class Counter:
    """Counts up to a number that the data set names."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def reset(self, goal, prompt, **columns):
        self.goal, self.count, self.prompt = goal, 0, prompt
        return f" Count to {goal}."

    def add(self, amount: int) -> str:
        """Count on.

        Args:
            amount: by how much
        """
        self.count += amount
        return f"{self.count} of {self.goal}"

    def _hidden(self):
        raise AssertionError

    def get_reward(self):
        return float(self.count == self.goal)


class Plain:
    def reset(self, **columns):
        """Nothing to do."""

    async def look(self) -> str:
        """Look around."""
        return "a room"


def test_every_completion_has_an_environment_of_its_own():
    made = Counter.made
    use = generator(call("add", amount=2), call("add", amount=1), "ok", tools=(), factory=Counter)
    for _ in range(2):  # made once, reset often
        completions = complete(use, "Go.", "Go.", goal=[3, 5])
        environments = completions.columns["environments"]
        assert [e.count for e in environments] == [3, 3]
        assert environments[0] is not environments[1]
        said = [m["content"] for m in completions.messages[1] if m["role"] == "tool"]
        assert said == ["2 of 5", "3 of 5"]
        assert completions.prompts.prompts[1][-1]["content"] == "Go. Count to 5."
        assert text_of(completions.prompt_ids[1]).endswith("Go. Count to 5.<eos>\n<assistant>")
        assert environments[0].prompt == [{"role": "user", "content": "Go."}]
        (reward,) = use.toolbox.reward_functions()
        assert reward.name == "Counter"
        assert reward.call(environments=environments) == [1.0, 0.0]
    assert Counter.made - made == 2
    assert [schema["function"]["name"] for schema in use.toolbox.schemas[None]] == ["add"]


def test_a_column_chooses_among_several_environments():
    factory = {"count": Counter, "look": Plain}
    use = generator(call("look"), "ok", factory=factory)
    columns = {"environment": ["count", "look"], "goal": [1, 1]}
    completions = complete(use, "a", "b", **columns)
    assert completions.messages[0][1]["content"] == str({"error": "Tool look not found."})
    assert completions.messages[1][1]["content"] == "a room"
    names = [s["function"]["name"] for s in use.toolbox.schemas["look"]]
    assert names == ["calc", "look"]
    (reward,) = use.toolbox.reward_functions()
    assert reward.call(environments=completions.columns["environments"]) == [0.0, None]


# --- what is refused --------------------------------------------------------------------------


NO_ANSWERS = TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'tool'")


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (NO_ANSWERS, "leaves out a tool's call or its answer"),
        (BRACKETS, "Nobody says how this chat template writes a tool call: set tokenizer.resp"),
        (TEMPLATE.replace("<eos>", ""), r"ends a turn that calls a tool with none of \['<eos>'\]"),
        ("{{ raise_exception('no tools') }}", "cannot show tools: no tools."),
        (None, "need a tokenizer with a chat template"),
    ],
)
def test_a_template_that_cannot_do_it_is_told(template, sentence):
    with pytest.raises(ValueError, match=sentence):
        ToolChat(without(template=template), (EOS,), {})


def test_the_tokenizer_s_own_response_template_reads_its_calls():
    use = generator("[CALL]" + call("calc", expression="1+2")[11:-12] + "[/CALL]", "3")
    use.chat = ToolChat(without(template=BRACKETS, response=BRACKETS_RESPONSE), (EOS,), {})
    assert complete(use).messages[0][1]["content"] == "3"


def test_a_tool_without_a_description_is_told():
    with pytest.raises(ValueError, match="tool 'bare' cannot be described to the model"):
        Toolbox([bare], None, 1.0)
    with pytest.raises(ValueError, match="A tool is a function, not 'calc'"):
        Toolbox(["calc"], None, 1.0)
    with pytest.raises(ValueError, match="environment list has no method reset"):
        Toolbox([], list, 1.0)


def bare(x):
    return x


# --- training ---------------------------------------------------------------------------------


def train(folder, *turns, columns=None, inner=None, resume=None, **given):
    settings = {"tools": [calc], "max_completion_length": 120, "max_steps": 2}
    settings |= {"reward_funcs": length_of_answer, "value_model": "policy"}
    model = runs.policy()
    model.config.max_position_embeddings = 1024
    trainer = runs.make_trainer(
        folder,
        model,
        train_dataset=chats(**(columns or {})),
        processing_class=tokenizer(),
        **settings | given,
    )
    if turns:
        trainer.generator.inner = Script(*turns)
    trainer.train(resume)
    return trainer


def length_of_answer(completions, completion_ids, **columns):
    assert [message["role"] for message in completions[0]][:1] == ["assistant"]
    return [len(messages[-1]["content"]) + 0.1 * i for i, messages in enumerate(completions)]


def test_training_credits_what_the_policy_wrote_and_a_turn_starts_a_segment(tmp_path):
    turns = call("calc", expression="1+2"), call("calc", expression="x"), "It is 3."
    trainer = train(
        tmp_path, *turns, entropy_percentile=0.0, max_completion_length=400, eval_dataset=chats(3)
    )
    evaluated, *_ = runs.rollouts_of(tmp_path)
    assert (~evaluated.rollouts.action_mask & evaluated.rollouts.completion_mask).any(1).all()
    for saved in runs.rollouts_of(tmp_path)[-2:]:
        rollouts, credit = saved.rollouts, saved.credit
        assert '"calc"' in rollouts.prompts[0]  # the model is told of it
        assert (~rollouts.action_mask & rollouts.completion_mask).any(1).all()
        assert not credit.token_advantages[~rollouts.action_mask].any()
        assert (credit.segment_ids.max(1) == 2).all()  # one for each turn
        assert np.count_nonzero(credit.token_advantages[rollouts.action_mask]) > 100
    metrics = runs.metrics_of(tmp_path)
    steps = [line for line in metrics if "reward" in line]
    assert [line["tools/call_frequency"] for line in steps] == [2.0, 2.0]
    assert [line["tools/failure_frequency"] for line in steps] == [0.5, 0.5]
    words_said = sum(len(turn) + 1 for turn in turns)
    assert steps[0]["completions/mean_length"] == words_said
    evaluations = [line for line in metrics if "eval/reward" in line]
    assert [line["eval/tools/call_frequency"] for line in evaluations] == [2.0, 2.0]
    assert evaluations[0]["eval/completions/mean_length"] == words_said
    assert trainer.state.global_step == 2


def test_a_resumed_run_is_the_same_and_so_is_any_split_of_its_rows(tmp_path):
    whole = sampled(tmp_path / "whole", save_steps=1)
    whole.train()
    assert runs.metrics_of(tmp_path / "whole")[0]["tools/call_frequency"] > 0.2
    again_ = sampled(tmp_path / "again", save_steps=1, callbacks=[runs.StopAfter(1)])
    again_.train()
    resumed = sampled(tmp_path / "again", save_steps=1)
    resumed.train("latest")
    assert runs.same_bits(runs.weights_of(whole), runs.weights_of(resumed))
    split = sampled(tmp_path / "split", per_device_generation_batch_size=3)
    split.train()
    for a, b in zip(
        runs.rollouts_of(tmp_path / "whole"), runs.rollouts_of(tmp_path / "split"), strict=True
    ):
        assert np.array_equal(a.rollouts.token_ids, b.rollouts.token_ids)


def test_recorded_log_probs_are_those_of_a_pass_over_the_whole(tmp_path):
    """The second turn is sampled behind the tool's words, at its place in the sequence."""
    for name in ("sampling", "scoring"):
        sampled(tmp_path / name, rollout_logprobs=name, max_steps=1).train()
    (a,), (b,) = (runs.rollouts_of(tmp_path / name) for name in ("sampling", "scoring"))
    mask = a.rollouts.action_mask
    assert (~mask & a.rollouts.completion_mask).any()
    for name in ("token_logprobs_old", "token_entropies"):
        np.testing.assert_allclose(
            getattr(a.rollouts, name)[mask], getattr(b.rollouts, name)[mask], atol=2e-4
        )


def test_an_environment_is_enough_of_a_reward(tmp_path):
    trainer = train(
        tmp_path,
        call("add", amount=2),
        "ok",
        tools=None,
        environment_factory=Counter,
        reward_funcs=None,
        columns={"goal": [1, 2, 3, 2]},
        max_completion_length=200,
    )
    (saved, *_) = runs.rollouts_of(tmp_path)
    goals = np.array([1, 2, 3, 2])[saved.rollouts.prompt_index]
    assert saved.rollouts.reward_names == ["Counter"]
    assert np.array_equal(saved.rollouts.completion_rewards, goals == 2)
    assert "Count to 2." in " ".join(saved.rollouts.prompts)
    assert trainer.state.global_step == 2


def test_reward_functions_see_environments_and_weights_stay_theirs(tmp_path):
    seen = []

    def counts(environments, **columns):
        seen.extend(type(e).__name__ for e in environments)
        return [float(e.count) for e in environments]

    train(
        tmp_path,
        call("add", amount=2),
        "ok",
        tools=None,
        environment_factory=Counter,
        reward_funcs=[counts],
        reward_weights=[0.5],
        columns={"goal": [2] * 4},
        max_completion_length=200,
        max_steps=1,
    )
    (saved,) = runs.rollouts_of(tmp_path)
    assert seen == ["Counter"] * 8
    np.testing.assert_array_equal(saved.rollouts.completion_rewards, 0.5 * 2 + 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rollout_func": lambda prompts, trainer: {}}, "rollout_func runs its tools itself"),
        ({"train_dataset": runs.prompts()}, "Tools need chat messages; column 'prompt' holds"),
        ({"environment_factory": {"a": Plain}}, "Several environments need a column 'environment'"),
        ({"reward_funcs": None}, "No reward given"),
    ],
    ids=["rollout_func", "text", "no column", "no reward"],
)
def test_what_does_not_fit_is_said_before_training(tmp_path, given, sentence):
    arguments = {"train_dataset": chats(), "tools": [calc], "processing_class": tokenizer()}
    with pytest.raises(ValueError, match=sentence):
        runs.make_trainer(tmp_path, **arguments | given)


def test_an_environment_that_is_not_there_is_named(tmp_path):
    data = chats(environment=["a", "b", "a", "a"])
    with pytest.raises(
        ValueError, match=r"'environment' says 'b'; environment_factory has \['a'\]"
    ):
        runs.make_trainer(
            tmp_path,
            train_dataset=data,
            environment_factory={"a": Plain},
            processing_class=tokenizer(),
        )


def test_completions_without_tools_have_no_counts():
    assert dataclasses.replace(Completions([[1]], [[2, 3]], [False])).lengths == [2]
