"""Sequence-classification models as rewards: prompt + completion -> one logit."""

from pathlib import Path
from typing import Any


class RewardModel:
    """A sequence classifier with one output as a reward function.

    Args:
        model: a loaded `…ForSequenceClassification`; put into eval mode.
        processing_class: its tokenizer; None loads the one saved with the model.
        batch_size: sequences scored at once.
    """

    def __init__(self, model, processing_class=None, batch_size: int = 16):
        config = model.config
        self.__name__ = Path(config._name_or_path).name or type(model).__name__
        if config.num_labels != 1:
            raise ValueError(
                f"The reward model {self.__name__!r} has {config.num_labels} outputs, a reward is "
                "one number: give a sequence classifier with num_labels=1."
            )
        if processing_class is None:
            processing_class = _load_tokenizer(config._name_or_path)
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        config.pad_token_id = processing_class.pad_token_id  # where the last token is looked for
        self.model = model.eval()
        self.processing_class = processing_class
        self.batch_size = batch_size

    def __call__(self, prompts, completions, completion_ids, **columns) -> list[float]:
        import torch

        texts = [self._text(*pair) for pair in zip(prompts, completions, strict=True)]
        rewards: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            inputs = self.processing_class(
                text=texts[start : start + self.batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            with torch.no_grad():
                logits = self.model(**inputs.to(self.model.device)).logits
            rewards += logits[:, 0].float().tolist()
        return rewards

    def _text(self, prompt, completion) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        return self.processing_class.apply_chat_template(prompt + completion, tokenize=False)


def load_reward_model(path: str, processing_class, device, quantization_config) -> RewardModel:
    """The reward model in a folder or on the hub, on the device."""
    from transformers import AutoModelForSequenceClassification

    from spo.networks.loading import is_adapter

    kwargs: dict[str, Any] = {"num_labels": 1} if is_adapter(path) else {}  # not its base's
    if quantization_config is not None:
        kwargs |= {
            "quantization_config": quantization_config,
            "device_map": {"": device or "cpu"},
        }
    try:
        model = AutoModelForSequenceClassification.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"Could not load the reward model {path!r}: {reason}.") from error
    if device is not None and quantization_config is None:
        model = model.to(device)
    return RewardModel(model, processing_class)


def _load_tokenizer(path: str):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The reward model {path!r} comes with no tokenizer: give reward_processing_classes."
        ) from error
