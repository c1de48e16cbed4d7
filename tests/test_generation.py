"""spo.generation: greedy decoding, the sampled distribution, independence of rows, texts."""

import dataclasses
import re

import numpy as np
import pytest
import tiny
import torch
from transformers import DynamicCache, GenerationConfig

from spo.config import SPOConfig
from spo.generation.build import sampling_params
from spo.generation.engine import SamplingParams
from spo.generation.rollout_func import RolloutFunc
from spo.generation.sampler import Sampler, sample, search, uniforms
from spo.generation.text import completion_texts, eos_token_ids
from spo.networks.batching import Sequences
from spo.networks.build import build_policy
from spo.networks.loading import lora_config
from spo.networks.network import Network, Numerics
from spo.networks.prefill import PreallocatedLayer, SharedPrompts
from spo.networks.room import RowsInFlight
from spo.prompts import PromptBatch
from spo.scoring import score_rows, token_columns

PROMPTS = [[65, 66, 67], [65, 66, 67], [70], [71, 72, 73, 74, 75, 76], [80, 81], [90, 91, 92]]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # matrices this small only wait for a second one


@pytest.fixture(scope="module")
def model():
    model = tiny.tiny_llama()
    with torch.no_grad():  # peaked enough that sampling has something to choose
        model.lm_head.weight.mul_(25)
    return model


@pytest.fixture
def forwards(model):
    """Rows of every forward pass of the decoder, in order."""
    rows = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield rows
    handle.remove()


def noise(num_rows, length, seed=0):
    return uniforms(seed, 1, np.arange(num_rows), length)


def run(model, prompts=PROMPTS, length=12, eos=(), seed=0, max_rows=None, **settings):
    params = SamplingParams(length, eos_token_ids=eos, **settings)
    numbers = noise(len(prompts), length, seed)
    return sample(as_network(model), prompts, numbers, params, RowsInFlight(max_rows))


def as_network(model, temperature=1.0):
    return Network(model, model.get_output_embeddings(), numerics=Numerics(temperature=temperature))


def prompt_batch(count):
    rows = np.arange(count)
    return PromptBatch(1, rows, rows, ["p"] * count, ["p"] * count, [[1]] * count, {})


def some_eos(model, **settings):
    """Two tokens that end some rows early, others late or never."""
    free = run(model, **settings).token_ids
    return (free[0][3], free[3][5])


# --- greedy ---------------------------------------------------------------------------------------


def test_greedy_equals_transformers_generate(model):
    """Ragged prompts in one batch here, one prompt at a time there; with and without an end."""
    eos = some_eos(model, temperature=0.0)
    for ends in ((), eos):
        ours = run(model, eos=ends, temperature=0.0)
        for prompt, token_ids in zip(PROMPTS, ours.token_ids, strict=True):
            theirs = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=12,
                eos_token_id=list(ends) or None,
            )
            assert token_ids == theirs[0, len(prompt) :].tolist()
    assert {len(ids) for ids in ours.token_ids} > {4}  # some rows ended, not all at once


def test_greedy_ignores_the_noise(model):
    assert run(model, seed=0, temperature=0.0) == run(model, seed=1, temperature=0.0)


# --- ends -----------------------------------------------------------------------------------------


def test_rows_end_with_the_end_token_or_are_truncated(model):
    eos = some_eos(model)
    free, ended = run(model), run(model, eos=eos)
    for whole, token_ids, truncated in zip(
        free.token_ids, ended.token_ids, ended.truncated, strict=True
    ):
        stops = [t for t, i in enumerate(whole) if i in eos]
        assert token_ids == whole[: stops[0] + 1 if stops else None]
        assert truncated == (not stops)
    assert len(set(ended.truncated)) == 2
    assert free.truncated == [True] * len(PROMPTS)
    for columns in (ended.token_logprobs, ended.token_entropies):
        assert list(map(len, columns)) == list(map(len, ended.token_ids))


def test_an_end_token_in_the_last_place_is_no_truncation(model):
    first = run(model, length=4).token_ids[0]
    ended = run(model, length=first.index(first[3]) + 1, eos=(first[3],))
    assert ended.token_ids[0] == first[: first.index(first[3]) + 1]
    assert not ended.truncated[0]


def test_equal_prompts_share_their_prefill_and_finished_rows_leave(model, forwards):
    ended = run(model, eos=some_eos(model))
    lengths = np.array([len(ids) for ids in ended.token_ids])
    assert len(set(lengths)) > 2
    forwards.clear()
    run(model, eos=some_eos(model))
    free = 12  # some_eos runs once without an end: 1 prefill, 11 further tokens
    assert forwards[:free] == [5] + [6] * 11
    # 6 rows are so few that every end is below the 7/8 that starts a compaction
    running = [int((lengths > t).sum()) for t in range(1, lengths.max())]
    assert forwards[free:] == [5, *running]


# --- sampling -------------------------------------------------------------------------------------


def test_the_cache_is_written_in_place_and_keeps_what_was_in_it(model):
    prompts = SharedPrompts.build([[65, 66], [65, 66], [70, 71]], model.device)
    step = prompts.first_step(model.config)
    step.run(model.base_model)
    cache = step.cache
    cache.batch_select_indices(prompts.of_row)
    plain = DynamicCache(config=model.config)
    torch.manual_seed(0)
    for layer in cache.layers:
        assert type(layer) is PreallocatedLayer
    keys, values = cache.layers[0].keys, cache.layers[0].values
    plain.update(keys, values, 0)
    storages = set()
    with torch.no_grad():
        for count in (1, 1, 3, 40, 1, 1):
            new = torch.randn(2, 3, *keys.shape[1:2], count, keys.shape[-1])
            for ours, theirs in zip(cache.update(*new, 0), plain.update(*new, 0), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            storages.add(cache.layers[0].keys.untyped_storage().data_ptr())
    assert len(storages) == 2  # room was made for the first and for the forty
    cache.batch_select_indices(torch.tensor([2, 0]))
    with torch.no_grad():
        ours = cache.update(*new[:, [2, 0]], 0)[0]
    torch.testing.assert_close(ours, torch.cat([plain.layers[0].keys, new[0]], 2)[[2, 0]])


def test_the_search_gives_each_token_its_share_of_the_unit_interval():
    """Evenly spaced numbers, so that counts are the probabilities up to the two ends of a share."""
    logits = torch.tensor([1.0, -1.0, 0.0, 2.0, -float("inf"), 0.5])
    num = 40_000
    evenly = (torch.arange(num) + 0.5) / num
    counts = np.bincount(
        search(logits.softmax(-1).cumsum(-1).expand(num, -1).contiguous(), evenly), minlength=6
    )
    expected = logits.double().softmax(-1).numpy() * num
    assert abs(counts - expected).max() < 2
    assert counts[4] == 0


@pytest.mark.parametrize(
    ("noise", "token"), [(0.0, 1), (0.4999, 1), (0.5001, 3), (0.99999994, 3), (1.0, 3)]
)
def test_impossible_tokens_are_skipped_at_both_ends(noise, token):
    """1.0 is a float64 just below it, rounded to float32."""
    none = -float("inf")
    logits = torch.tensor([[none, 0.0, none, 0.0, none]])
    assert search(logits.softmax(-1).cumsum(-1), torch.tensor([noise])).item() == token


def next_token_probs(model, prompt, temperature=1.0):
    with torch.no_grad():
        return (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1).numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_tokens_follow_the_model_at_the_temperature(model, temperature):
    num = 4000
    drawn = run(model, [PROMPTS[0]] * num, length=1, temperature=temperature).token_ids
    counts = np.bincount(np.array(drawn)[:, 0], minlength=tiny.VOCAB_SIZE)
    expected = next_token_probs(model, PROMPTS[0], temperature) * num
    common = expected > 20
    pooled = np.array([*counts[common], counts[~common].sum()])
    expected = np.array([*expected[common], expected[~common].sum()])
    chi_square = ((pooled - expected) ** 2 / expected).sum()
    freedom = len(pooled) - 1
    assert freedom > 3
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_top_k_and_top_p_cut_the_support_but_not_the_recorded_distribution(model):
    probs = next_token_probs(model, PROMPTS[0])
    order = np.argsort(-probs)
    nucleus = order[: int(np.searchsorted(np.cumsum(probs[order]), 0.6)) + 1]
    assert len(nucleus) > 1
    for settings, support in (({"top_k": 3}, order[:3]), ({"top_p": 0.6}, nucleus)):
        drawn = run(model, [PROMPTS[0]] * 600, length=1, **settings)
        tokens = [ids[0] for ids in drawn.token_ids]
        assert set(tokens) == set(support.tolist())
        recorded = np.exp([row[0] for row in drawn.token_logprobs])
        np.testing.assert_allclose(recorded, probs[tokens], rtol=1e-4)
        entropy = -(probs * np.log(probs)).sum()
        np.testing.assert_allclose([row[0] for row in drawn.token_entropies], entropy, rtol=1e-4)
    one = run(model, top_k=1).token_ids
    assert one == run(model, temperature=0.0).token_ids
    assert run(model, top_k=10_000).token_ids == run(model).token_ids


SHAPES = {
    "min_p": {"min_p": 0.3},
    "penalty": {"repetition_penalty": 1.8},
    "both": {"min_p": 0.05, "repetition_penalty": 1.3, "temperature": 0.7, "top_p": 0.9},
    "n-grams": {"no_repeat_ngram_size": 2},
    "minimum": {"min_new_tokens": 6},
    "typical": {"typical_p": 0.5},
    "cutoffs": {"epsilon_cutoff": 0.02, "eta_cutoff": 0.1, "top_k": 50},
    "top_h": {"top_h": 0.4},
    "forbidden": {"bad_words_ids": [[70], [80, 81]], "suppress_tokens": list(range(100, 200))},
    "begin": {"begin_suppress_tokens": list(range(128))},
    "bias": {"sequence_bias": [[[65], 4.0]]},
    "ending": {"exponential_decay_length_penalty": (2, 1.5)},
}


def as_transformers_samples(model, prompt, numbers, eos, settings):
    """One row, token by token, through the processors that `generate` makes of the settings."""
    config = GenerationConfig(do_sample=True, **{"top_k": 0} | settings)
    config._eos_token_tensor = torch.tensor(eos)
    ids = torch.tensor([prompt])
    processors = model._get_logits_processor(config, len(prompt), device="cpu", model_kwargs={})
    for number in numbers:
        with torch.no_grad():
            logits = model(ids).logits[:, -1].float()
        cumulative = processors(ids, logits).softmax(-1).cumsum(-1)
        chosen = search(cumulative, torch.tensor([number]).float())
        ids = torch.cat([ids, chosen[:, None]], 1)
        if chosen.item() in eos:
            break
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_sampling_settings_are_transformers_own(model, name):
    """Ragged prompts and rows that end here, one row there; the recorded log-probs are those of the
    policy whatever was cut off."""
    eos, length = some_eos(model), 12
    kwargs = {n: v for n, v in SHAPES[name].items() if n not in ("temperature",)}
    args = SPOConfig(generation_kwargs=kwargs, temperature=SHAPES[name].get("temperature", 1.0))
    params = sampling_params(model, tiny.byte_tokenizer(), args)
    params = dataclasses.replace(params, max_new_tokens=length, eos_token_ids=eos)
    numbers = noise(len(PROMPTS), length)
    network = as_network(model, args.temperature)
    ours = sample(network, PROMPTS, numbers, params)
    for prompt, drawn, row in zip(PROMPTS, ours.token_ids, numbers, strict=True):
        assert drawn == as_transformers_samples(model, prompt, row, eos, SHAPES[name])
    free = dataclasses.replace(params, min_p=None, repetition_penalty=1.0, generation_kwargs={})
    free = dataclasses.replace(free, top_p=1.0, top_k=0)
    assert sample(network, PROMPTS, numbers, free).token_ids != ours.token_ids
    sequences = Sequences(PROMPTS, ours.token_ids, share_prompts=False)
    logprobs, _ = score_rows(network, "logprobs_and_entropies", sequences, SPOConfig())
    for recorded, scored in zip(ours.token_logprobs, logprobs, strict=True):
        np.testing.assert_allclose(recorded, scored, rtol=1e-4, atol=1e-4)


def test_the_fields_of_the_configuration_are_the_same_settings(model):
    fields = SPOConfig(min_p=0.2, repetition_penalty=1.5, top_k=9)
    packed = SPOConfig(generation_kwargs={"min_p": 0.2, "repetition_penalty": 1.5, "top_k": 9})
    tokenizer = tiny.byte_tokenizer()
    assert sampling_params(model, tokenizer, fields) == sampling_params(model, tokenizer, packed)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs holds num_beams"),
        ({"min_new_token": 4}, "did you mean 'min_new_tokens'"),
        ({"temperature": 0.5}, "set temperature itself"),
        ({"no_repeat_ngram_size": -1}, "is refused: `ngram_size` has to be a strictly positive"),
        ({"typical_p": -1.0}, "is refused: `typical_p` has to be a float"),
    ],
)
def test_a_sampling_setting_that_cannot_be_is_one_sentence(model, kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        sampling_params(model, tiny.byte_tokenizer(), SPOConfig(generation_kwargs=kwargs))
    assert "\n" not in str(error.value)


# --- independence of rows -------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [1, 2, 4, 100])
def test_a_row_does_not_depend_on_how_many_are_in_flight(model, max_rows):
    eos = some_eos(model)
    assert run(model, eos=eos, max_rows=max_rows).token_ids == run(model, eos=eos).token_ids


def test_a_row_does_not_depend_on_the_others_or_their_order(model):
    eos = some_eos(model)
    together = run(model, eos=eos).token_ids
    order = [4, 1, 5, 0]
    sampling = SamplingParams(12, eos_token_ids=eos)
    some = sample(as_network(model), [PROMPTS[i] for i in order], noise(6, 12)[order], sampling)
    assert some.token_ids == [together[i] for i in order]
    assert len({tuple(ids) for ids in together}) == 6  # equal prompts, different completions


def test_no_rows_sample_to_nothing(model):
    empty = sample(as_network(model), [], np.zeros((0, 4)), SamplingParams(4, eos_token_ids=()))
    assert empty.token_ids == empty.token_logprobs == empty.truncated == []


def test_uniforms_are_a_function_of_seed_step_and_row():
    whole = uniforms(7, 3, np.arange(5), 10)
    np.testing.assert_array_equal(whole[[4, 1]], uniforms(7, 3, np.array([4, 1]), 10))
    np.testing.assert_array_equal(whole[:, :6], uniforms(7, 3, np.arange(5), 6))
    others = [uniforms(8, 3, np.arange(5), 10), uniforms(7, 4, np.arange(5), 10), whole[::-1]]
    assert all(abs(whole - other)[[0, 1, 3, 4]].min() > 0 for other in others)
    assert whole.min() >= 0
    assert whole.max() < 1


# --- agreement with scoring -----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_and_entropies_equal_a_fresh_scoring_pass(model, temperature):
    """Measured in float32: either differs by at most 2e-6."""
    drawn = run(model, eos=some_eos(model, temperature=temperature), temperature=temperature)
    logprobs, entropies = score_rows(
        as_network(model, temperature),
        "logprobs_and_entropies",
        Sequences(PROMPTS, drawn.token_ids),
        SPOConfig(temperature=temperature),
    )
    for recorded, fresh in (
        (drawn.token_logprobs, logprobs),
        (drawn.token_entropies, entropies),
    ):
        for a, b in zip(recorded, fresh, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
            assert b.dtype == np.float32


# --- other sources --------------------------------------------------------------------------------


def from_func(output, count, eos=()):
    return RolloutFunc(lambda prompts, trainer: output, None)(
        prompt_batch(count), SamplingParams(4, eos_token_ids=eos), 1
    )


def test_what_a_rollout_func_returns():
    output = {
        "prompt_ids": [(1, 2), (3,)],
        "completion_ids": [(4, 9), (5, 6)],
        "logprobs": [[-0.5, -1.0], [-2.0, -3.0]],
        "env_mask": [[1, 0], [1, 1]],
        "env_reward": [1.0, 2.0],
    }
    got = from_func(output, 2, (9,))
    assert got.token_ids == [[4, 9], [5, 6]]
    assert got.prompt_ids == [[1, 2], [3]]
    assert got.truncated == [False, True]
    assert got.columns == {"env_reward": [1.0, 2.0]}  # the rest is not for the rewards
    assert got.token_logprobs is got.token_entropies is None
    assert got.token_logprobs_sampler == output["logprobs"]
    assert got.action_mask == [[True, False], [True, True]]


def test_a_rollout_func_may_return_tokens_alone():
    got = from_func({"prompt_ids": [[1]], "completion_ids": [[2]]}, 1)
    assert got.action_mask is got.token_logprobs_sampler is None
    assert got.columns == {}


def test_zeros_in_the_place_of_logprobs_are_none():
    """TRL asks for the key, and reads it with vLLM alone; a correction by them would be wrong."""
    output = {"prompt_ids": [[1]], "completion_ids": [[2, 3]], "logprobs": [[0.0, 0.0]]}
    assert from_func(output, 1).token_logprobs_sampler is None


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {"prompt_ids": [[1]], "completion_ids": [[2]]},
            r"3 prompts and returned 1 prompt_ids and\s+1 completion",
        ),
        ({"prompt_ids": [[1]] * 3}, "without 'completion_ids'"),
        ({"prompt_ids": [[]] * 3, "completion_ids": [[2]] * 3}, "empty prompt_ids"),
        (
            {"prompt_ids": [[1]] * 3, "completion_ids": [[2]] * 3, "env_mask": [[1, 1]] * 3},
            "env_mask of other lengths",
        ),
    ],
)
def test_what_a_rollout_func_must_not_return(output, message):
    with pytest.raises(ValueError, match=message):
        from_func(output, 3)


def test_every_end_token_of_model_and_tokenizer_ends_a_completion():
    model, tokenizer = tiny.tiny_llama(layers=1), tiny.byte_tokenizer()
    model.generation_config.eos_token_id = [7, 5]
    assert eos_token_ids(model, tokenizer) == (5, 7, tiny.EOS)
    model.generation_config.eos_token_id = tiny.EOS
    assert eos_token_ids(model, tokenizer) == (tiny.EOS,)
    model.generation_config.eos_token_id = None
    assert eos_token_ids(model, tokenizer) == (tiny.EOS,)


# --- texts ----------------------------------------------------------------------------------------

WITH_BYTES = ["plain", "é", "日本", "a👍🏽b", "…x", "", "naïve 🇩🇪!", "\n\ttab"]


def test_ends_of_one_byte_tokens_fall_between_characters():
    tokenizer = tiny.byte_tokenizer()
    token_ids = [[*text.encode(), tiny.EOS] for text in WITH_BYTES]
    texts, ends = completion_texts(tokenizer, token_ids)
    assert texts == WITH_BYTES
    for text, ids, row in zip(WITH_BYTES, token_ids, ends, strict=True):
        boundaries = np.cumsum([0] + [len(character.encode()) for character in text])
        # byte t completes the characters that end at t + 1 or before; the end token adds nothing
        expected = [max(x for x in boundaries if x <= t + 1) for t in range(len(ids))]
        assert row == expected
        assert row[-1] == len(text.encode())


def test_bytes_that_are_no_text_still_end_in_order_and_cover_the_text():
    tokenizer = tiny.byte_tokenizer()
    cut, stray = "日本".encode()[:-1], [0xFF, 65, 0xC3]
    texts, ends = completion_texts(tokenizer, [list(cut), stray, []])
    assert texts[0].startswith("日")
    for text, row in zip(texts[:2], ends[:2], strict=True):
        assert row == sorted(row)
        assert row[-1] == len(text.encode())
        assert all(text.encode()[:end].decode() is not None for end in row)
    assert (texts[2], ends[2]) == ("", [])


def test_special_tokens_are_in_no_text_and_have_no_width():
    tokenizer = tiny.byte_tokenizer()
    texts, ends = completion_texts(tokenizer, [[tiny.BOS, 65, tiny.PAD, 66, tiny.EOS]])
    assert texts == ["AB"]
    assert ends == [[0, 1, 1, 2, 2]]


@pytest.mark.parametrize(("dtype", "merge"), [("float32", True), ("bfloat16", False)])
def test_the_samplers_log_probs_are_the_policys(dtype, merge):
    completions = _adapted(dtype)[1](merge)
    assert completions.token_logprobs_sampler is None
    assert completions.token_logprobs is not None


def test_an_adapter_merged_into_16_bits_counts_as_another_engine():
    """Much of it is below the weights' last digit."""
    policy, run_with = _adapted("bfloat16")
    merged = run_with(True)
    assert merged.token_logprobs is None
    assert merged.token_entropies is None
    scored = token_columns(merged, policy, None, SPOConfig())["token_logprobs_old"]
    apart = [
        np.abs(np.subtract(a, b))
        for a, b in zip(scored, merged.token_logprobs_sampler, strict=True)
    ]
    assert 0 < np.concatenate(apart).mean() < 0.1


def _adapted(dtype):
    """A policy with a small adapter, and a function that samples from it, merged or not."""
    torch.manual_seed(0)
    model = tiny.tiny_llama().to(getattr(torch, dtype))
    policy = build_policy(model, lora_config(4, 8))
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    batch = dataclasses.replace(prompt_batch(6), prompt_ids=PROMPTS)
    params = SamplingParams(6, ())
    return policy, lambda merge: Sampler(policy, seed=0, merge=merge)(batch, params, 1)
