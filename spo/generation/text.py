"""Completion tokens -> text, where in it each token ends, and which tokens end a completion."""

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel


def completion_texts(
    processing_class, token_ids: list[list[int]]
) -> tuple[list[str], list[list[int]]]:
    """Text of each completion without special tokens, and where in it each token ends.

    Ends are counted in UTF-8 bytes and fall between characters: a character spread over several
    tokens belongs to the last of them.
    """
    texts = processing_class.batch_decode(token_ids, skip_special_tokens=True)
    distinct = sorted({i for ids in token_ids for i in ids})
    pieces = (
        processing_class.batch_decode([[i] for i in distinct], skip_special_tokens=True)
        if distinct
        else []  # batch_decode([]) is [""]
    )
    piece_of = dict(zip(distinct, pieces, strict=True))
    ends = []
    for ids, text in zip(token_ids, texts, strict=True):
        if "".join(piece_of[i] for i in ids) == text and "\ufffd" not in text:
            ends.append(np.cumsum([len(piece_of[i].encode()) for i in ids], dtype=int).tolist())
        else:
            ends.append(_ends_in_context(processing_class, ids, text))
    return texts, ends


def _ends_in_context(processing_class, ids: list[int], text: str) -> list[int]:
    """Token ends where tokens cannot be decoded alone: decode each behind the few before it.

    What is decoded twice is ids[context:done], whose text is known; a token that leaves a
    character unfinished (U+FFFD) waits for the token that finishes it.
    """

    def decode(start, stop):
        return processing_class.decode(ids[start:stop], skip_special_tokens=True)

    ends, end, context, done = [], 0, 0, 0
    limit = len(text.encode())
    for count in range(1, len(ids) + 1):
        known, seen = decode(context, done), decode(context, count)
        if len(seen) > len(known) and not seen.endswith("\ufffd"):
            end = min(end + len(seen[len(known) :].encode()), limit)
            context, done = done, count
        ends.append(end)
    if ends:
        ends[-1] = limit
    return ends


def eos_token_ids(model: PreTrainedModel | PeftModel, processing_class) -> tuple[int, ...]:
    """Every token that ends a completion: the model's generation config's and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, processing_class.eos_token_id] if i is not None}))
