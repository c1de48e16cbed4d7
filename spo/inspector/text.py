"""Byte offsets of tokens in a completion -> character offsets. Pure numpy.

Rollout files say where each token ends in UTF-8 bytes, and a byte-level tokenizer may end one in
the middle of a character. Here the character belongs to the token that completes it, and the
tokens before it are empty, so that the pieces always join to the exact text.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Int


def char_ends(
    text: str, byte_ends: Int[np.ndarray, " T"], utf16: bool = False
) -> Int[np.ndarray, " T"]:
    """Where each token ends, in characters (Python) or UTF-16 units (JavaScript).

    "é" is two bytes; a token that ends between them ends before it.

    >>> char_ends("né😀", np.array([1, 2, 3, 7]))
    array([1, 1, 2, 3])
    >>> char_ends("né😀", np.array([1, 2, 3, 7]), utf16=True)
    array([1, 1, 2, 4])

    Ends out of order or outside the text (files from elsewhere) are pulled to the nearest
    possible place.
    """
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    is_first = (data & 0xC0) != 0x80
    is_last = np.append(is_first[1:], True)[: len(data)]
    size_of_char = np.where(data[is_first] >= 0xF0, 2, 1) if utf16 else 1
    complete_at = np.zeros(len(data) + 1, dtype=np.int64)
    complete_at[1:][is_last] = size_of_char
    ends = np.maximum.accumulate(np.clip(byte_ends, 0, len(data)))
    return np.cumsum(complete_at)[ends]


def utf16_places(text: str) -> Int[np.ndarray, " _"]:
    """The place of each character, and of the end, in UTF-16 units (JavaScript).

    >>> utf16_places("a😀b")
    array([0, 1, 3, 4])
    """
    return np.cumsum([0, *(2 if ord(char) > 0xFFFF else 1 for char in text)])


def parts_of_characters(
    text: str, byte_ends: Int[np.ndarray, " T"]
) -> dict[int, tuple[int, int, str]]:
    """Of tokens that end inside a character: {token: (which part, of how many, the character)}.

    >>> parts_of_characters("a👍", np.array([1, 3, 5]))
    {1: (1, 2, '👍')}
    """
    ends = [0, *char_ends(text, byte_ends).tolist()]
    parts, waiting = {}, []
    for token, (start, end) in enumerate(pairwise(ends)):
        if start == end:
            waiting.append(token)
            continue
        for number, part in enumerate(waiting):
            parts[part] = (number + 1, len(waiting) + 1, text[start])
        waiting = []
    return parts
