"""Random settings: what SPOConfig and SPOTrainer accept trains two steps; the rest is a sentence.

python tests/faults/configs.py 500 --seed 0
"""

import argparse
import collections
import dataclasses
import io
import math
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import tiny_runs as runs
import transformers
from peft import LoraConfig

from spo import SPOConfig
from spo.options import literal_choices

GIVEN = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "use_cpu", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "run_name", "model_init_kwargs"),
    *("max_steps", "disable_tqdm", "num_train_epochs", "reward_timeout"),
}
"""Settings that the campaign chooses itself, or that need a network."""

NUMBERS = {
    "learning_rate": (0, 1e-6, 1e-3, 1e-2),
    "value_learning_rate": (None, 0, 1e-3),
    "per_device_train_batch_size": (1, 2, 4, 8, 16),
    "gradient_accumulation_steps": (1, 2, 3),
    "generation_batch_size": (None, None, 8, 16, 24),
    "steps_per_generation": (None, None, 1, 2, 3),
    "num_generations": (1, 2, 4, 8),
    "max_completion_length": (1, 2, 8, 17),
    "max_prompt_length": (None, None, 1, 9, 1000),
    "top_k": (0, 1, 5, 1000),
    "temperature": (0.05, 0.7, 1.0, 3.0),
    "value_warmup_steps": (0, 1, 5),
    "warmup_steps": (0, 0.5, 1, 10),
    "save_minutes": (0, 15, 1e-9),
    "segment_delimiter": (r"\n", ".", "", "(?=a)", "(", r"\b"),
    "reward_weights": (None, None, [1.0], [0.0], [-1.0], [1.0, 2.0]),
    "value_model_path": (None, "policy"),
    "logits_chunk_size": (1, 7, 256),
    "seed": (0, 42, -1, 2**31),
}
"""Values worth trying; other numbers are drawn from their bounds."""

ANY_FLOAT = (0.0, 1e-9, 0.05, 0.5, 0.95, 1.0, 2.0, 10.0, -1.0, math.nan, math.inf)
ANY_INT = (0, 1, 2, 3, 10, -1)


def drawn(field: dataclasses.Field, choices: dict[str, tuple], draw: random.Random) -> Any:
    """A value that the field may hold, or may refuse."""
    if field.name in NUMBERS:
        return draw.choice(NUMBERS[field.name])
    if field.name in choices:
        return draw.choice(choices[field.name])
    if field.type.startswith("bool"):
        return draw.random() < 0.5
    if "None" in field.type and draw.random() < 0.4:
        return None
    if field.type.startswith("float") and field.metadata.get("high") == 1:
        return draw.choice((0.0, 1.0, draw.random(), *ANY_FLOAT[-3:]))
    return draw.choice(ANY_FLOAT if field.type.startswith("float") else ANY_INT)


def settings(draw: random.Random) -> dict[str, Any]:
    """A few settings that differ from the defaults."""
    choices = literal_choices(SPOConfig)
    fields = [field for field in dataclasses.fields(SPOConfig) if field.name not in GIVEN]
    picked = draw.sample(fields, draw.randint(1, 12))
    return {field.name: drawn(field, choices, draw) for field in picked}


def outcome(chosen: dict[str, Any], lora: bool, folder: Path) -> str:
    """ "trained", or the sentence it was refused with; anything else is raised."""
    given = {"peft_config": LoraConfig(**runs.LORA)} if lora else {}
    try:
        trainer = runs.make_trainer(folder, reward_funcs=length, **given, **chosen)
    except ValueError as error:
        said = str(error)
        assert said.strip(), "refused without a word"
        assert "\n" not in said, f"more than a line: {said}"
        return said
    trainer.train()
    steps = [line["step"] for line in runs.metrics_of(folder)]
    assert trainer.state.global_step == 2
    logging = chosen.get("logging_steps", 1)
    logging = math.ceil(2 * logging) if logging < 1 else logging  # a share of the two steps
    assert steps == [step for step in (1, 2) if step % logging == 0 or step == 2], steps
    assert all(math.isfinite(float(w.sum())) for w in runs.weights_of(trainer).values())
    assert (folder / "config.json").exists() or (folder / "adapter_config.json").exists()
    return "trained"


def length(completion_ids: list, **columns: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def campaign(accepted: int, seed: int, folder: Path) -> tuple[collections.Counter, list[str]]:
    """Draw settings until so many were accepted; what went wrong, with how to repeat it."""
    draw = random.Random(seed)
    counted: collections.Counter = collections.Counter()
    faults: list[str] = []
    transformers.logging.set_verbosity_error()
    while counted["trained"] < accepted:
        chosen, lora = settings(draw), draw.random() < 0.3
        said = io.StringIO()
        try:
            with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                end = outcome(chosen, lora, folder / "run")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(
                f"{type(error).__name__}: {str(error).splitlines()[:1]} "
                f"at {Path(where.filename).name}:{where.lineno}, lora={lora}, {chosen}"
            )
            end = "FAULT"
        counted[end if end in ("trained", "FAULT") else "refused in a sentence"] += 1
        shutil.rmtree(folder / "run", ignore_errors=True)
    return counted, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("accepted", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counted, faults = campaign(given.accepted, given.seed, Path(folder))
    for name, count in sorted(counted.items()):
        print(f"{count:5d}  {name}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
