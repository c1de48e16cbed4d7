"""The built-in rewards: answers checked by reasoning-gym or math-verify, format, length.

Input: prompts, completions (text or chat messages), completion ids and the columns named in each
signature. Output: one float per completion, None where there is no gold answer to compare with.
"""

import functools
import json
import logging
import os
import re
import threading
from collections.abc import Callable

from spo.problems import create_reasoning_gym_task, decode_entry
from spo.rewards.math_answers import (
    after_equals,
    final_number,
    is_number,
    last_sentence,
    named_answer,
    option_letter,
    repeats,
)

ANSWER_FORMAT = r"<answer>\s*\S.*?</answer>\s*$"


def _texts(completions: list) -> list[str]:
    """Completions as text; a chat completion is a list of one message."""
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]


def format_reward(pattern: str = ANSWER_FORMAT) -> Callable:
    """1 where `pattern` is found (`.` matches line ends too); by default a closing <answer> tag.

    >>> format_reward()(["2+2="] * 2, ["So <answer>4</answer>", "So 4"], [[], []])
    [1.0, 0.0]
    """
    compiled = re.compile(pattern, flags=re.DOTALL)

    def reward(prompts, completions, completion_ids, **columns) -> list[float]:
        return [float(compiled.search(text) is not None) for text in _texts(completions)]

    reward.__name__ = "format"
    return reward


def soft_overlong_reward(max_completion_length: int, cache_length: int) -> Callable:
    """DAPO's soft over-long punishment (arXiv 2503.14476, eq. 13), lengths in tokens.

    0 for |y| ≤ L_max − L_cache, then ((L_max − L_cache) − |y|) / L_cache down to −1 at L_max and
    beyond. By name, `soft_overlong` takes L_max = max_completion_length and the paper's ratio
    L_cache = L_max / 5.

    >>> soft_overlong_reward(10, 4)([""] * 4, [""] * 4, [[0] * 6, [0] * 7, [0] * 10, [0] * 99])
    [0.0, -0.25, -1.0, -1.0]
    """
    if not 0 <= cache_length <= max_completion_length:
        raise ValueError(
            f"cache_length={cache_length} must lie between 0 and {max_completion_length=}."
        )

    def reward(prompts, completions, completion_ids, **columns) -> list[float]:
        excess = [len(ids) - (max_completion_length - cache_length) for ids in completion_ids]
        return [-min(1.0, e / max(cache_length, 1)) if e > 0 else 0.0 for e in excess]

    reward.__name__ = "soft_overlong"
    return reward


def reasoning_gym_reward(
    prompts, completions, completion_ids, *, entry, task, task_options=None, **columns
) -> list[float]:
    """The score, 0 to 1, that reasoning-gym's own verifier gives to the text in the <answer> tags.

    No tags, no points. The columns are those of `load_dataset_by_name("reasoning_gym/<task>")`.
    """
    task_options = task_options or ["{}"] * len(task)
    rows = zip(_texts(completions), entry, task, task_options, strict=True)
    return [_reasoning_gym_score(*row) for row in rows]


def _reasoning_gym_score(text: str, entry: str, task: str, task_options: str) -> float:
    from math_verify.errors import TimeoutException  # a BaseException
    from math_verify.utils import timeout
    from reasoning_gym.utils import extract_answer

    score_answer = _reasoning_gym_scorer(task, task_options)
    problem = decode_entry(entry)
    answer = extract_answer(text)
    if answer is None:
        return 0.0
    if not _is_safe_to_evaluate(answer, problem["metadata"].get("source_dataset", task)):
        answer = "?"
    try:
        return float(timeout(_alarm_seconds(5))(score_answer)(answer, problem))
    # reasoning-gym 0.1.25: boxnet, prime_factorization and others raise on malformed answers. The
    # problem is the library's own, so what fails here is the answer.
    except (Exception, TimeoutException):
        return 0.0


@functools.lru_cache(maxsize=64)
def _reasoning_gym_scorer(task: str, task_options: str) -> Callable:
    return create_reasoning_gym_task(task, json.loads(task_options)).score_answer


def _is_safe_to_evaluate(answer: str, task: str) -> bool:
    """False for an answer that could run code, or for hours, in a verifier that evaluates it.

    reasoning-gym 0.1.25 passes answers to Python's `eval` in four tasks, and in five to sympy's
    `parse_expr`, which evaluates too. Calls, unknown names and big powers must not get there.
    """
    if task in ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"):
        return re.search(r"[(*<]", answer) is None
    if task in ("countdown", "puzzle24"):
        return re.search(r"[^\d\s+\-*/().]|\*\*", answer) is None
    if task in ("intermediate_integration", "polynomial_multiplication", "simple_integration"):
        functions = r"a?(sin|cos|tan|sec|csc|cot)h?|exp|log|ln|sqrt|Abs|Integral|pi"
        names = re.findall(r"[A-Za-z_]\w+", answer)
        dangerous = r"[\"'`_!\[\]{}:]|\*\*\D?\d{3}|\*\*\D?\d+\s*\*\*"
        return not re.search(dangerous, answer) and all(re.fullmatch(functions, n) for n in names)
    return True


def math_verify_reward(
    prompts, completions, completion_ids, *, answer=None, solution=None, **columns
) -> list[float | None]:
    """1 where math-verify finds the completion's answer equal to the gold one, else 0.

    The answer is what the last <answer> tags hold, else \\boxed{}, "####" or "the answer is"; else
    the number the text ends with (`math_answers`). Where gold is a number, an expression is no
    answer; nor is one side of an equation, or what only repeats the prompt. Gold is column
    `answer`, else `solution`, from "####" on if that is in it (GSM8K). None where gold does not
    parse.
    """
    golds = answer if answer is not None else solution
    if golds is None:
        raise ValueError("it needs a column 'answer' or 'solution'")
    rewards: list[float | None] = []
    for prompt, text, gold in zip(prompts, _texts(completions), golds, strict=True):
        gold_text = "" if gold is None else str(gold).rsplit("####", 1)[-1].strip()
        gold_number = final_number(gold_text) if is_number(gold_text) else None
        gold_parsed = _parse_math(gold_number or gold_text) if gold_text else []
        rewards.append(
            float(_is_right(text, gold_text, gold_parsed, str(prompt))) if gold_parsed else None
        )
    return rewards


def _is_right(text: str, gold_text: str, gold_parsed: list, prompt: str) -> bool:
    """Whether the answer in `text` equals gold: as a letter, as a number, or as an expression."""
    from math_verify import verify

    named = named_answer(text)
    if option_letter(gold_text):
        return option_letter(text if named is None else named) == option_letter(gold_text)
    if named is None or is_number(gold_text):
        piece = text if named is None else after_equals(named)
        if named is None and repeats(last_sentence(text.rstrip()), prompt):
            return False
        number = final_number(piece)
        parsed = _parse_math(number) if number else []
    else:
        is_relation = re.search(r"[=<>]|\\[lg]eq?\b", gold_text)
        piece = named if is_relation else after_equals(named)
        parsed = _parse_math(piece)
        if repeats(piece, prompt) and parsed[:1] != gold_parsed[:1]:
            return False
    return bool(parsed) and verify(gold_parsed, parsed, timeout_seconds=_alarm_seconds(5))


@functools.lru_cache(maxsize=4096)
def _parse_math(text: str) -> list:
    """math-verify's reading of a text; bare mathematics such as "x^2 + 1" is read as LaTeX."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each missing timeout
    latex = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(units=True, malformed_operators=True),
    )
    read = functools.partial(
        parse,
        extraction_config=[latex, ExprExtractionConfig()],
        extraction_mode="first_match",
        parsing_timeout=_alarm_seconds(5),
    )
    is_delimited = re.search(r"\$|\\[(\[]", text)
    words = re.search(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+|\{[a-z]*matrix\}", "", text))
    return read(text) if is_delimited or words or is_number(text) else read(f"${text}$")


def _alarm_seconds(seconds: int) -> int | None:
    """math-verify's timeouts are POSIX alarms, which only the main thread may set; else none."""
    is_main = threading.current_thread() is threading.main_thread()
    return seconds if is_main and os.name == "posix" else None


def _soft_overlong_of(max_completion_length: int | None) -> Callable:
    if max_completion_length is None:
        raise ValueError("The reward 'soft_overlong' needs max_completion_length.")
    return soft_overlong_reward(max_completion_length, max(1, max_completion_length // 5))


BUILTIN_REWARDS: dict[str, Callable[[int | None], Callable]] = {
    "reasoning_gym": lambda _: reasoning_gym_reward,
    "math_verify": lambda _: math_verify_reward,
    "format": lambda _: format_reward(),
    "soft_overlong": _soft_overlong_of,
}
"""Reward functions by name, each made for a max_completion_length."""

VERIFIERS = ("reasoning_gym", "math_verify")
"""Those that give 1 to a right answer and less to any other."""
