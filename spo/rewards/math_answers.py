"""The text of a completion -> the piece of it that is its answer, before anybody does mathematics.

A verifier that looks for mathematics anywhere finds the question, too: "7 - 8 =" equals -1. So an
answer is what the text names as one (tags, \\boxed, "####", "the answer is"), or else the number
the text ends with, if it stands for itself and is no operand. Pure text, standard library only.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:[1-9]\d{0,2}(?:[, ]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)"
_FRACTION = r"\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d)(\d))"
_NUMBER = re.compile(
    rf"(?<![\w.\\])(?<!\d,)(?:"
    rf"(?P<whole>\d+)?\s*{_FRACTION}|(?P<mixed>\d+)\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    rf"|(?P<number>{_DIGITS})(?:\s*/\s*(?P<divisor>{_DIGITS})"
    rf"|\s*(?:\\times|\\cdot|[×*·])\s*10\s*\^\s*\{{?\s*(?P<power>[-−+]?\d+)\s*\}}?"
    rf"|[eE](?P<exponent>[-+]?\d+))?)"
    rf"(?P<percent>\s*(?:%|percent\b|per cent\b))?"
)
"""A number as people write one: 1,234.5, 2 1/2, \\frac{1}{2}, 3 × 10^5, 50 %; its sign not."""

_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(
    r"\banswers?\b(?![^.:=\n\d$\\]{0,60}\b(?:not|n't)\b)[^.:=\n]{0,60}?"
    r"(?:\b(?:is|are|be)\b\s*:?|[:=])"
    r"[\s*_]*(\$\$.+?\$\$|\\\[.+?\\\]|\$[^$\n]+\$|[^\n]+?(?=[.!?;]+[*_]*(?:\s|$)|\n|$))",
    re.IGNORECASE | re.DOTALL,
)
_REASONS = re.compile(
    r",?\s+\b(?:because|since|which|as|so|where|when|(?:and|but) not|instead)\b.*", re.DOTALL
)
_BETWEEN_BOXES = re.compile(r"[\s$,]*(?:and|or)?[\s$]*")
_REFUSAL = re.compile(
    r"\bI(?: am|.m)? (?:do not|don.t|cannot|can.t|could not|couldn.t|not sure|unable)",
    re.IGNORECASE,
)
_UNIT_POWERS = re.compile(
    r"(?<=[\d\s/{])((?:[kcdm]?m|s|in|ft|yd|mi|inch|inches|feet|units?|met(?:er|re)s?)\}?)"
    r"\s*(?:\^\s*\{?\s*-?\d\s*\}?|[²³])"
)
_CLEANED = (  # what is decoration, and what LaTeX and typography write in other words
    (re.compile(r"<<[^<>]*>>"), " "),  # the calculator's notes in GSM8K
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°"), " "),
    (re.compile(r"(?<=\d)(?:\\,|\\ |\{,\}|,\\!|~)(?=\d{3})"), ","),
    (re.compile(r"\\(?:left|right|displaystyle|[,;:! ])|\\[()\[\]]|`|__"), " "),
    (re.compile(r"(?<![\w)*])\*\*(?=[^\s*])([^*\n]*[^\s*])\*\*(?!\*)"), r" \1 "),
    (re.compile(r"\\([%$€£])"), r"\1"),
    (re.compile(r"[-=]+>|[→⇒]|\\(?:[Rr]ightarrow|to|implies)\b"), "="),
    (re.compile(r"(?<![\w*])[*_]([^*_\s][^*_\n]*)[*_](?![\w*])"), r"\1"),
    (re.compile(r"</?[a-z|_]+>"), " "),
    (re.compile(r"[−–](?=\s?[\d.\\])"), "-"),
    (re.compile(r"[$€£¥₹]"), " "),
)
_OPERATORS = r"[+\-*×÷/^·<>≤≥]|\\times|\\cdot|\\div|\\pm|\bmod"
_IS_OPERAND = re.compile(  # what stands before a number that is none for itself
    rf"(?:(?:{_OPERATORS})[\s(\[{{]*|\b(?:not|plus|minus|times|over|(?:divided|multiplied) by)"
    r"|\bor\s+[a-z]\s*=|\d[%)\w]*\s*(?:,|or|and|to|through|&)"
    r"|\\[A-Za-z]+\s*[\[{(]?|[_^]\s*\{?|\w[({]|\{)\s*$",
    re.IGNORECASE,
)
_GOES_ON = re.compile(  # what stands behind one
    r"\s*[)}\]]*\s*(?:=|[+×÷*^·<>≤≥](?!\s*$)|/\s*[\d(]|\\[A-Za-z]|π|√|-\s*(?:[\d(\\]|[A-Za-z]\b))"
    r"|[A-Za-z]\b(?<=[abknxyz])|\("
)


def named_answer(text: str) -> str | None:
    """What the text says its answer is: <answer> tags, else \\boxed, else ####, else "answer is".

    The last of each counts; boxes joined by "and", "or" or a comma are one answer.

    >>> named_answer("First 3, so the answer is 4, because 2 + 2 = 4.")
    '4'
    """
    if tagged := _TAGS.findall(text):
        return tagged[-1].strip()
    if boxes := _boxes(text):
        return boxes
    if hashed := _HASHES.findall(text):
        return hashed[-1].strip()
    if phrases := _PHRASE.findall(text):
        return _REASONS.sub("", phrases[-1]).strip(" *_.")
    return None


def _boxes(text: str) -> str | None:
    """What stands in the last \\boxed{} and in those joined to it."""
    found = []
    for match in [*re.finditer(r"\\(?:boxed|fbox)\s*\{", text)][-20:]:
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            found.append((match.start(), end, text[match.end() : end - 1].strip()))
    if not found:
        return None
    contents = [found[-1][2]]
    for (_, end, content), (start, *_) in zip(found[-2::-1], found[:0:-1], strict=True):
        if end > start or not _BETWEEN_BOXES.fullmatch(text[end:start]):
            break
        contents.insert(0, content)
    return ", ".join(contents)


def after_equals(text: str) -> str:
    """The right end of an equation or of "x \\in ..."; text without one as it is."""
    return re.split(r"(?<![<>!\\])=(?!=)|\\in\b|∈|≈|\\approx", text)[-1].strip(" $")


def final_number(text: str) -> str | None:
    """The last number of a text, as "-3", "5/2", "0.5" or "50%"; None where it is part of more.

    One side of an equation, an operand, an element of a list, what "I do not know" or a question
    is about: none is an answer. A fraction that is a whole number was not worked out.

    >>> [final_number(t) for t in ("7 - 8 =", "7 - 8 = -1.", "1,200 km", "so 2 1/2", "6/2")]
    [None, '-1', '1200', '5/2', None]
    """
    text = _UNIT_POWERS.sub(r"\1", clean(text))
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    if len(matches[-1][0]) > 300:  # beyond what Python converts
        return None
    before, behind = text[: matches[-1].start()], text[matches[-1].end() :]
    before = before[-500:]
    sentence = last_sentence(before) + re.split(r"[.\n]", behind)[0]
    if _GOES_ON.match(behind) or "?" in sentence or _REFUSAL.search(sentence):
        return None
    sign = re.search(r"(?:(?:^|[=:(\[{≈]|\\approx|\b[A-Za-z]{2,})\s*|(?:^|\s))([-+])\s*$", before)
    if sign and not re.search(r"[\d)}%]\s*[-+]\s*$|(?:^|\s)[a-z]\s*[-+]\s*$", before):
        before = before[: sign.start(1)]
        if re.search(r"[A-Za-z]$", before):  # a hyphen: "top-8"
            return None
    else:
        sign = None
    if _IS_OPERAND.search(before):
        return None
    number = _value(matches[-1])
    return number and ("-" if sign and sign[1] == "-" else "") + number


def last_sentence(text: str) -> str:
    """What follows the last end of a sentence or line; a point within a number ends none."""
    return re.split(r"[.!?](?=\s)|\n", text)[-1]


def _value(match: re.Match) -> str | None:
    """The digits of a number without separators; a fraction reduced, None where it is whole."""
    parts, percent = match.groupdict(), "%" if match["percent"] else ""
    numerator, denominator = match[2] or match[4], match[3] or match[5]
    if numerator or parts["mixed"]:
        top, bottom = int(numerator or parts["top"]), int(denominator or parts["bottom"])
        whole = int(parts["whole"] or parts["mixed"] or 0)
        if not bottom or top % bottom == 0:
            return None
        return str(whole + Fraction(top, bottom)) + percent
    digits = _plain(parts["number"])
    if parts["divisor"]:
        divisor = Fraction(_plain(parts["divisor"]))
        quotient = Fraction(digits) / divisor if divisor else None
        return None if quotient is None or quotient.denominator == 1 else f"{quotient}{percent}"
    power = int((parts["power"] or parts["exponent"] or "0").replace("−", "-"))
    if power and abs(power) < 400:
        return str(Fraction(digits) * Fraction(10) ** power) + percent
    return None if power else digits + percent


def _plain(digits: str) -> str:
    """1,234.5 and 1 234.5 as 1234.5; the comma of 3,5 is a decimal one."""
    if re.fullmatch(r"[1-9]\d{0,2}(?:[, ]\d{3})+(?:\.\d+)?", digits):
        digits = re.sub("[, ]", "", digits)
    whole, _, decimals = digits.replace(",", ".").partition(".")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{decimals}" if decimals else whole


def clean(text: str) -> str:
    """The text without LaTeX's spacing and fonts, Markdown's stars and signs of currency."""
    for pattern, replacement in _CLEANED:
        text = pattern.sub(replacement, text)
    return text


def is_number(text: str) -> bool:
    """Whether the text is one number, with a unit perhaps.

    >>> [is_number(t) for t in ("72 apples", "-\\\\frac{1}{2}", "2 + 3", "x^2", "(1, 2)", "2x")]
    [True, True, False, False, False, False]
    """
    text = _UNIT_POWERS.sub(r"\1", clean(text)).strip(" .")
    sign = re.match(r"[-+]?\s*", text)
    number = _NUMBER.match(text, sign.end())
    is_alone = number and re.fullmatch(r"[A-Za-z/\s.]*", text[number.end() :])
    return bool(is_alone) and final_number(text) is not None


def option_letter(text: str) -> str | None:
    """The letter of a multiple-choice answer: "B", "(B)", "B) 12", "option B."

    >>> [option_letter(t) for t in ("(B)", "Option C.", "B) 12", "A dog", "x")]
    ['B', 'C', 'B', None, None]
    """
    found = re.match(
        r"(?:option|choice)?\s*(?:\(([A-J])\)|([A-J])(?:[).:](?!\w)|\s*$))",
        clean(text).strip(" $*"),
        re.IGNORECASE if "ption" in text or "hoice" in text else 0,
    )
    return (found[1] or found[2]).upper() if found else None


def repeats(piece: str, prompt: str) -> bool:
    """Whether the piece, an expression or a sentence and no bare number, stands in the prompt."""
    if is_number(piece):
        return False
    squeezed = _squeeze(piece)
    has_more = re.search(rf"{_OPERATORS}|[a-z]{{3,}}.*[a-z]{{3,}}", clean(piece), re.IGNORECASE)
    return bool(squeezed and has_more) and squeezed in _squeeze(prompt)


def _squeeze(text: str) -> str:
    return re.sub(r"[\s${}]|[.?!=:]+$", "", clean(text).strip()).lower()
