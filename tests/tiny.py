"""Tiny stand-ins for real models: a lossless byte-level tokenizer and two-layer Llamas, no hub."""

NUM_BYTES = 256
PAD, BOS, EOS = 256, 257, 258
VOCAB_SIZE = 259

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def byte_tokenizer(chat_template: bool = False):
    """Token id = byte value, then pad 256, bos 257, eos 258; decoding gives back every UTF-8 text.

    It adds no special token by itself; `chat_template` gives it `CHAT_TEMPLATE`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {character: byte for byte, character in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"]) == [PAD, BOS, EOS]
    return tokenizer


def tiny_llama(
    vocab_size: int = VOCAB_SIZE, *, seed: int = 0, hidden_size: int = 32, layers: int = 2
):
    """A LlamaForCausalLM with seeded random weights; leaves the global random state as it was."""
    from transformers import LlamaForCausalLM

    return _seeded(LlamaForCausalLM, _llama_config(vocab_size, hidden_size, layers), seed)


def tiny_reward_model(
    vocab_size: int = VOCAB_SIZE,
    *,
    seed: int = 0,
    hidden_size: int = 32,
    layers: int = 2,
    num_labels: int = 1,
):
    """A LlamaForSequenceClassification with seeded random weights, head included."""
    from transformers import LlamaForSequenceClassification

    config = _llama_config(vocab_size, hidden_size, layers)
    config.num_labels = num_labels
    return _seeded(LlamaForSequenceClassification, config, seed)


def _llama_config(vocab_size: int, hidden_size: int, layers: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def _seeded(model_class, config, seed: int):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()
