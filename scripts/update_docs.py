"""Flags, recipes and benchmarks/results/*.json -> the generated blocks of the pages.

python scripts/update_docs.py            # rewrite the blocks of README, docs/ and benchmarks/
python scripts/update_docs.py --check    # exit 1 if they are out of date
"""

import dataclasses
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import critic_tables  # noqa: E402
import results_tables  # noqa: E402
import speed_tables  # noqa: E402

import train_spo  # noqa: E402
from spo import trl  # noqa: E402
from spo.cli import default_of, options_table  # noqa: E402
from spo.config import SPOConfig  # noqa: E402

DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "settings.md",
    ROOT / "docs" / "memory.md",
    ROOT / "docs" / "scale.md",
    ROOT / "docs" / "flags.md",
    ROOT / "docs" / "trl.md",
    ROOT / "docs" / "engines.md",
    ROOT / "docs" / "evidence.md",
    ROOT / "docs" / "inspector.md",
    ROOT / "benchmarks" / "README.md",
)
CLASSES = (train_spo.ModelArguments, train_spo.ScriptArguments, SPOConfig)
RECIPES = ("quickstart", "smollm2", "card", "gsm8k", "tldr")

REASONS = {
    "entropy_percentile": "segments of about a step of reasoning; 0.05 to 0.2 measure alike",
    "lam": "low where the critic knows the solution; else 0.8 to 1 differ by less than the noise",
    "value_reference": "the critic reads the solution that the data set or a sibling has",
    "normalize_advantages": "a little better without on one task of two, noise on the other",
    "positive_nll_coef": "steadies small batches at a high rate; the largest single gain",
    "value_model_path": "a critic network on the policy's base",
    "value_features": "most of what the critic explains; stays the critic without a network",
    "value_learning_rate": "a head that starts at 0 has further to go than the policy",
    "value_warmup_steps": "a critic of all weights is fitted before the policy moves",
    "beta": "keeps skills that no reward points at",
    "num_generations": "a critic needs no group, so a step sees more problems; the quickstart "
    "keeps groups to compare in the inspector",
    "temperature": "this model is seldom right at 1",
    "max_prompt_length": "bounds the memory; longer prompts are dropped and counted",
    "max_completion_length": "what the answers need",
    "per_device_train_batch_size": "rows in one pass, by the card",
    "gradient_accumulation_steps": "times the line above: completions a step",
    "max_steps": "the length of the run",
    "learning_rate": "LoRA and small models need 10 to 400 times the rate of all weights",
    "lr_scheduler_type": "the run can be prolonged",
    "warmup_steps": "Adam's first estimates are noise",
    "adam_beta2": "short runs",
    "optim": "8-bit states, paged out when the card is full",
    "bf16": "half the memory; where the hardware has it",
    "gradient_checkpointing": "far fewer activations for about a third more computing",
    "eval_steps": "progress on problems that are not trained on",
    "eval_temperature": "accuracy of samples, as trained; others take the most likely answer",
    "per_device_eval_batch_size": "short answers: more fit at a time",
    "save_steps": "what a crash may cost",
    "save_total_limit": "two checkpoints on disk",
}
"""Why a recipe departs from a default of SPOConfig."""


def flags() -> str:
    return options_table(CLASSES)


def recipe_settings() -> str:
    """What each recipe sets differently from SPOConfig's defaults, and why."""
    recipes = {
        name: yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text()) for name in RECIPES
    }
    lines = [
        f"| setting | default | {' | '.join(RECIPES)} | why |",
        f"|---|---|{'---|' * len(RECIPES)}---|",
    ]
    for field in dataclasses.fields(SPOConfig):
        values = [recipe.get(field.name, field.default) for recipe in recipes.values()]
        if all(value == field.default for value in values):
            continue
        cells = ["·" if value == field.default else _plain(value) for value in values]
        lines.append(
            f"| `{field.name}` | {_plain(field.default)} | {' | '.join(cells)} | "
            f"{REASONS[field.name]} |"
        )
    return "\n".join(lines)


def _plain(value) -> str:
    """A value as it stands in YAML."""
    if isinstance(value, bool) or value is None:
        return "–" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def trl_settings() -> str:
    """What becomes of each setting of TRL's, Transformers' and open-r1's."""
    ours = {f.name: f for cls in CLASSES for f in dataclasses.fields(cls)}
    lines = [
        "**Same name, other default**",
        "",
        "| setting | TRL | SPO | why |",
        "|---|---|---|---|",
    ]
    for name, (theirs, why) in trl.OTHER_DEFAULTS.items():
        lines.append(f"| `{name}` | {_plain(theirs)} | {_plain(default_of(ours[name]))} | {why} |")
    lines += ["", "**Other name**", "", "| theirs | SPO |", "|---|---|"]
    lines += [f"| `{theirs}` | `{name}` |" for theirs, name in trl.RENAMED.items()]
    lines += ["", "**Not offered**", "", "| setting | instead |", "|---|---|"]
    lines += [f"| `{name}` | {instead} |" for name, (_, instead) in trl.REFUSED.items()]
    lines += ["", "**Accepted, without effect**", "", "| settings | because |", "|---|---|"]
    for reason in dict.fromkeys(trl.IDLE.values()):
        names = ", ".join(f"`{name}`" for name in trl.IDLE if trl.IDLE[name] == reason)
        lines.append(f"| {names} | {reason} |")
    same = ", ".join(f"`{name}`" for name in trl.SAME)
    return "\n".join([*lines, "", f"**Same name, meaning and default**: {same}."])


BLOCKS = (
    flags,
    trl_settings,
    recipe_settings,
    *results_tables.BLOCKS,
    *critic_tables.BLOCKS,
    *speed_tables.BLOCKS,
)


def render(text: str) -> str:
    """A document with every block it has a place for filled in."""
    for block in BLOCKS:
        name = block.__name__
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if re.search(pattern, text, flags=re.S):
            body = block()
            text = re.sub(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)  # noqa: B023
    return text


def main() -> int:
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    rendered = {path: render(text) for path, text in texts.items()}
    if "--check" in sys.argv[1:]:
        return int(texts != rendered)
    for path, text in rendered.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
