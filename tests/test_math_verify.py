r"""The math_verify reward on answers as models write them, right and wrong.

Each row: the gold answer, a completion, the reward it must get. Nothing but an answer earns one: a
text that repeats the question, refuses or shows its calculation without a result gets nothing.
"""

import time

import pytest

from spo.rewards.math_answers import final_number
from spo.rewards.verifiers import math_verify_reward

REPEATED = [  # the question itself is no answer to it
    ("-1", "7 - 8 =", 0.0),
    ("-1", "7 - 8", 0.0),
    ("-1", "7 - 8 = ?", 0.0),
    ("-1", "I do not know what 7 - 8 is", 0.0),
    ("-1", "What is 7 - 8?", 0.0),
    ("-1", "$7 - 8$", 0.0),
    ("-1", "$7 - 8 =$", 0.0),
    ("-1", "The question is 7-8.", 0.0),
    ("-1", "The answer is 7 - 8.", 0.0),
    ("-1", "<answer>7 - 8</answer>", 0.0),
    ("-1", "<answer>7 - 8 =</answer>", 0.0),
    ("-1", r"\boxed{7 - 8}", 0.0),
    ("-1", "#### 7-8", 0.0),
    ("8", "What is 7 - 8?", 0.0),
    ("8", "I do not know what 7 - 8 is", 0.0),
    ("12", "3 * 4", 0.0),
    ("12", r"$3 \times 4$", 0.0),
    ("12", r"\boxed{3 \cdot 4}", 0.0),
    ("3", "6/2", 0.0),
    ("3", "<answer>6/2</answer>", 0.0),
    ("3", r"\boxed{\frac{6}{2}}", 0.0),
    ("4", r"\boxed{\sqrt{16}}", 0.0),
    ("4", "sqrt(16)", 0.0),
    ("8", "2^3", 0.0),
    ("8", "2**3", 0.0),
    ("3", "2**3", 0.0),
    ("3", "2 ** 3", 0.0),
    ("3", "(1 + 1) ** 3 =", 0.0),
    ("8", "<answer>2^{3}</answer>", 0.0),
    ("6", "2(3)", 0.0),
    ("5", "the sum of 2 and 3", 0.0),
    ("5", "Let me calculate (2 + 3)", 0.0),
]
EQUATIONS = [  # the result of one counts, its other side does not
    ("-1", "The final answer is 7 - 8 = 1.", 0.0),
    ("-1", "7 - 8 = 1", 0.0),
    ("-1", "7 - 8 = -1", 1.0),
    ("-1", "The final answer is 7 - 8 = -1.", 1.0),
    ("-1", "-1 = 7 - 8", 0.0),
    ("-1", "-1 =", 0.0),
    ("5", "x = 5", 1.0),
    ("5", "<answer>x = 5</answer>", 1.0),
    ("5", "x + 5 = 7", 0.0),
    ("5", "5 = x", 0.0),
    ("24", "48/2 = 24 clips", 1.0),
    ("7", "3 + 4 = 7, because 4 + 3 = 7.", 1.0),
]
NEGATIVE = [
    ("-1", "-1", 1.0),
    ("-1", "−1", 1.0),
    ("-1", "- 1", 1.0),
    ("-1", "$-1$", 1.0),
    ("-1", "The result is -1.", 1.0),
    ("-1", "The result is **-1**.", 1.0),
    ("-1", "**Result:** -1", 1.0),
    ("-1", "**Result: -1**", 1.0),
    ("-1", "The result is **-1** apples", 1.0),
    ("-1", r"So we get \(-1\)", 1.0),
    ("-1", "1", 0.0),
    ("1", "-1", 0.0),
    ("1", "The result is −1", 0.0),
    ("-12", "It fell to -12 degrees", 1.0),
    ("-12", "It fell to 12 degrees", 0.0),
    ("19", "COVID-19", 0.0),
]
SEPARATORS = [
    ("1,000", "<answer>1000</answer>", 1.0),
    ("1000", "That makes 1,000.", 1.0),
    ("1234567", "1,234,567", 1.0),
    ("1234567", "1 234 567", 1.0),
    ("1234567", "$1{,}234{,}567$", 1.0),
    ("1234567", r"\boxed{1\,234\,567}", 1.0),
    ("1234.5", "1,234.5", 1.0),
    ("3.5", "3,5", 1.0),
    ("1000", "1,00", 0.0),
    ("35", "3,5", 0.0),
    ("0.05", "It is 0.05.", 1.0),
    ("0.05", ".05", 1.0),
    ("5", "05", 1.0),
]
FRACTIONS = [
    (r"\frac{1}{3}", r"so \boxed{\frac{2}{6}}", 1.0),
    ("1/3", "I get 2, so the answer is 1/3.", 1.0),
    ("0.5", "<answer>1/2</answer>", 1.0),
    ("1/2", "It is 0.5.", 1.0),
    (r"\frac{1}{2}", "1/2", 1.0),
    (r"\frac{1}{2}", r"so it is $\dfrac12$.", 1.0),
    (r"-\frac{1}{2}", r"$-\frac{1}{2}$", 1.0),
    (r"-\frac{1}{2}", r"$\frac{1}{2}$", 0.0),
    (r"\frac{1}{2}", "2/1", 0.0),
    ("1/2", "2", 0.0),
    ("2 1/2", "2 1/2 cups", 1.0),
    ("2.5", r"\boxed{2\frac{1}{2}}", 1.0),
    ("2.5", "The answer is 2 1/2.", 1.0),
    (r"2\frac{1}{2}", "5/2", 1.0),
    ("2.5", "1/2", 0.0),
    ("-2.5", "-2 1/2", 1.0),
]
UNITS = [
    ("5", "5 apples", 1.0),
    ("5", "She has 5 apples left.", 1.0),
    ("5 cm", "5", 1.0),
    ("5", "5cm", 1.0),
    ("5", r"\boxed{5\text{ cm}}", 1.0),
    ("12", "The area is 12 m^2.", 1.0),
    ("12", r"The area is $12\text{ cm}^2$.", 1.0),
    ("12", "12 m²", 1.0),
    ("2", "The area is 12 m^2.", 0.0),
    ("90", r"The angle is $90^\circ$.", 1.0),
    ("90", "90°", 1.0),
    ("18", "She makes $18 every day.", 1.0),
    ("18", r"\boxed{\$18}", 1.0),
    ("18", "€18.00", 1.0),
    ("60", "60 km/h", 1.0),
    ("6", "60 km/h", 0.0),
    ("25%", "25%", 1.0),
    ("25", "The answer is 25%.", 1.0),
    ("25%", r"\boxed{25\%}", 1.0),
    ("25%", "25 percent", 1.0),
    ("25%", "It is 52%.", 0.0),
    ("3000", r"$3 \times 10^3$", 1.0),
    ("3000", "3e3", 1.0),
    ("3000", r"<answer>3\times 10^{4}</answer>", 0.0),
]
REFUSALS = [
    ("5", "no idea", 0.0),
    ("5", "", 0.0),
    ("5", "I cannot solve this.", 0.0),
    ("5", "I don't know whether it is 5", 0.0),
    ("5", "The answer is not 5.", 0.0),
    ("5", "It is not 5", 0.0),
    ("5", "The answer is unknown.", 0.0),
    ("5", "<answer></answer>", 0.0),
    ("5", r"\boxed{}", 0.0),
    ("5", "1, 2, 3, 4, 5", 0.0),
    ("5", "4 or 5", 0.0),
    ("5", r"\boxed{4} or \boxed{5}", 0.0),
    ("5", "The answer is 4 or 5.", 0.0),
]
NAMED = [
    ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "The answer is 72.", 1.0),
    ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "The answer is 24.", 0.0),
    ("72", "48 + 24 = 72\n#### 72", 1.0),
    ("72", "So it is 24.\n#### 72 clips", 1.0),
    ("72", "Answer: 72", 1.0),
    ("72", "**Answer:** 72", 1.0),
    ("72", "The final answer is: $72$. I hope it is correct, 100%.", 1.0),
    ("72", "The answer to question 3 is 72 because 48 + 24 = 72.", 1.0),
    ("72", "Final answer:\n\n$$72$$", 1.0),
    ("72", "<answer>24</answer> no, <answer>72</answer>", 1.0),
    ("72", "<answer>72</answer> no, <answer>24</answer>", 0.0),
    ("72", r"<answer>24</answer> \boxed{72}", 0.0),
    (7, r"\boxed{7} or 8", 1.0),
    ("7", r"\boxed{\boxed{7}}", 1.0),
    ("3.14", "The answer is 3.14.", 1.0),
    ("72", "Done! 72 (seventy-two) clips - which is a lot.", 1.0),
    ("72", "48 clips + 24 clips = 72 clips in April and May.", 1.0),
    ("18", "She makes 9 * 2 = $<<9*2=18>>18 every day at the market.", 1.0),
    ("17.5", "The cost is $12.50 + $5 = $17.50.", 1.0),
    ("72", "<think>48 or 24?</think>\n\n72", 1.0),
    ("72", "**Final Answer**\n\n72", 1.0),
    ("72", "The answer is therefore 72 clips!", 1.0),
    ("72", "It can be shown that the answer is\n\\[\n72\n\\]", 1.0),
    ("72", "The answer is $72$ and not 24.", 1.0),
    ("72", "The correct answer: 72 (since 48 + 24 = 72)", 1.0),
    ("72", "=> *72*", 1.0),
    ("2", "x = 1 or x = 2", 0.0),
    ("72", "First there are 48. Then 24 more. Total: 72", 1.0),
    ("48", "First there are 48. Then 24 more. Total: 72", 0.0),
]
EXPRESSIONS = [  # where gold is no number, what is named is compared as mathematics
    ("x^2+1", "<answer>1+x^2</answer>", 1.0),
    ("x^2+1", r"\boxed{x^2 + 1}", 1.0),
    ("x^2+1", "The answer is $x^2+1$.", 1.0),
    ("x^2+1", r"\boxed{f(x) = x^2+1}", 1.0),
    ("x^2+1", r"\boxed{x^2-1}", 0.0),
    ("x^2+1", "1", 0.0),
    (r"2\sqrt{3}", r"\boxed{2\sqrt{3}}", 1.0),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", 1.0),
    (r"2\sqrt{3}", r"\boxed{3\sqrt{2}}", 0.0),
    (r"11\sqrt2", r"\boxed{11\sqrt{2}}", 1.0),
    ("2-2i", r"\boxed{2-2i}", 1.0),
    ("4343_6", r"\boxed{4343_6}", 1.0),
    ("2^{10}", r"\boxed{1024}", 1.0),
    ("1024", r"\boxed{2^{10}}", 0.0),
    (r"3\pi", r"3\pi", 0.0),
    (r"\frac{\pi}{4}", r"<answer>\frac{\pi}{4}</answer>", 1.0),
    ("[1,2)", r"\boxed{[1,2)}", 1.0),
    ("[1,2)", r"\boxed{[1,2]}", 0.0),
    ("(1, 2)", "<answer>(1, 2)</answer>", 1.0),
    ("(1, 2)", "<answer>(2, 1)</answer>", 0.0),
    (r"(-\infty, 3]", r"\boxed{x \in (-\infty, 3]}", 1.0),
    ("1, 2", r"\boxed{1} and \boxed{2}", 1.0),
    (r"\{1, 2\}", r"\boxed{\{2, 1\}}", 1.0),
    ("x > 3", r"\boxed{x > 3}", 1.0),
    ("x > 3", r"\boxed{x < 3}", 0.0),
    ("y = 2x + 1", r"\boxed{y = 2x + 1}", 1.0),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", 1.0),
    ("2i", r"\boxed{2i}", 1.0),
    ("3x", r"\boxed{3}", 0.0),
    ("3", r"\boxed{3x}", 0.0),
]
CHOICES = [
    ("B", "The answer is (B).", 1.0),
    ("B", "The answer is B.", 1.0),
    ("(B)", "<answer>B</answer>", 1.0),
    ("B", "<answer>B) 12</answer>", 1.0),
    ("B", r"\boxed{\text{(B)}}", 1.0),
    ("B", r"\boxed{\textbf{(B) }12}", 1.0),
    ("B", "B", 1.0),
    ("B", "(C)", 0.0),
    ("B", "The answer is (A).", 0.0),
    ("B", "(A) 3 (B) 4 (C) 5", 0.0),
    ("B", "Option B", 1.0),
    ("4", "(B) 4", 1.0),
]
UNSCORABLE = [("north-east", "north-east", None), (None, "3", None), ("", "3", None)]
CORPUS = [
    *(REPEATED + EQUATIONS + NEGATIVE + SEPARATORS + FRACTIONS + UNITS + REFUSALS + NAMED),
    *(EXPRESSIONS + CHOICES + UNSCORABLE),
]


@pytest.mark.parametrize(("gold", "completion", "expected"), CORPUS)
def test_only_an_answer_is_rewarded(gold, completion, expected):
    assert math_verify_reward([""], [completion], [[]], answer=[gold]) == [expected]
    chat = [{"role": "assistant", "content": completion}]
    assert math_verify_reward([""], [chat], [[]], solution=[gold]) == [expected]


WITH_PROMPT = [
    ("Expand (x+1)^2.", "x^2+2x+1", r"\boxed{(x+1)^2}", 0.0),
    ("Expand (x+1)^2.", "x^2+2x+1", r"\boxed{x^2+2x+1}", 1.0),
    ("Which is larger, x+1 or x-1?", "x+1", r"\boxed{x+1}", 1.0),
    ("Tom has 3 apples and buys 4. How many?", "4", "Tom has 3 apples and buys 4.", 0.0),
    ("Tom has 3 apples and buys 4. How many?", "7", "Tom has 7 apples.", 1.0),
    ("A 12 m rope is cut in 3. How long is a part?", "4", "4", 1.0),
    ("Half of a 1/2 cup is gone. Which of 1/2, 1/4 is left?", "0.25", "1/4", 1.0),
]


@pytest.mark.parametrize(("prompt", "gold", "completion", "expected"), WITH_PROMPT)
def test_what_repeats_the_prompt_is_no_answer(prompt, gold, completion, expected):
    assert math_verify_reward([prompt], [completion], [[]], answer=[gold]) == [expected]
    chat = [{"role": "user", "content": prompt}]
    assert math_verify_reward([chat], [completion], [[]], answer=[gold]) == [expected]


@pytest.mark.parametrize("a", [-12, 0, 7])
@pytest.mark.parametrize("b", [-3, 1, 8])
@pytest.mark.parametrize("sign", ["+", "-", "*", "/", "^", "×", r"\times", r"\cdot"])
@pytest.mark.parametrize("form", ["{}", "{} =", "${}$", "What is {}?", "I think it is {}.", "({})"])
def test_no_way_of_writing_an_operation_is_a_number(a, b, sign, form):
    left, right = (f"({n})" if n < 0 else str(n) for n in (a, b))
    assert final_number(form.format(f"{left} {sign} {right}")) is None or (
        sign == "/" and a % b  # a fraction in lowest terms is a number
    )


HOSTILE = ["1" * 9999, "1/" * 5000, "9" * 400 + "/3", "- " * 5000, "<answer>" * 2000, "1," * 5000]
HOSTILE += [
    r"\boxed{" * 2000,
    "{" * 5000,
    "answer " * 3000,
    "3e" + "9" * 50,
    "1 2/0",
    r"\frac{1}{0}",
]
HOSTILE += ["answer is $" * 1000, "#" * 9999, "1e-399", "((((" * 2000 + "5", r"\boxed{9^{9^{9^9}}}"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("gold", ["5", "x + 1", "B"])
def test_no_text_raises_or_takes_long(text, gold):
    begun = time.perf_counter()
    assert math_verify_reward([text], [text], [[]], answer=[gold]) == [float(text[-1] == gold)]
    assert time.perf_counter() - begun < 12
