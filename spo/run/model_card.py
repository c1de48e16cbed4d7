"""A finished run -> the README.md saved beside the model."""

from pathlib import Path
from typing import Any

import yaml

import spo
from spo.config import SPOConfig

TAGS = ("spo", "reinforcement-learning", "text-generation")
CITATIONS = """\
| Idea | Source |
|---|---|
| Segment-level advantages | Guo et al. 2025, [arXiv 2505.23564](https://arxiv.org/abs/2505.23564) |
| High-entropy tokens as decisions | [arXiv 2506.01939](https://arxiv.org/abs/2506.01939) |
| Clipped policy update (PPO) | [arXiv 1707.06347](https://arxiv.org/abs/1707.06347) |
| Generalized advantage estimation | [arXiv 1506.02438](https://arxiv.org/abs/1506.02438) |
| Groups of completions (GRPO) | [arXiv 2402.03300](https://arxiv.org/abs/2402.03300) |
"""


def model_card(
    name: str,
    steps: int,
    details: dict[str, Any],
    evaluations: list[tuple[int, dict[str, float]]],
    args: SPOConfig,
) -> str:
    """Front matter, command, data, measured rewards, configuration, sources.

    Args:
        name: of the run.
        steps: that it was trained for.
        details: one line each under the title; "base_model" also goes into the front matter, and
            "tags" only there; "title" stands for the name.
        evaluations: (step, metrics) in order.
    """
    details = dict(details)
    name, more = details.pop("title", name), details.pop("tags", ())
    tags = [*TAGS, *([more] if isinstance(more, str) else more)]
    lines = [
        "---",
        "library_name: transformers",
        f"tags: [{', '.join(dict.fromkeys(tags))}]",
        *_base_model(details["base_model"]),
        "---",
        "",
        f"# {name}",
        "",
        f"Trained with Segment Policy Optimization (spo {spo.__version__}) for {steps} steps.",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in details.items() if value),
        "",
    ]
    if evaluations:
        names = sorted({name for _, metrics in evaluations for name in metrics})
        lines += ["## Held-out evaluation", "", f"| step | {' | '.join(names)} |"]
        lines += [f"|---|{'---|' * len(names)}"]
        for step, metrics in evaluations:
            cells = (f"{metrics[n]:.3f}" if n in metrics else "" for n in names)
            lines.append(f"| {step} | {' | '.join(cells)} |")
        lines.append("")
    settings = yaml.safe_dump(args.to_dict(), sort_keys=False).rstrip()
    lines += ["## Configuration", "", "```yaml", settings, "```", "", "## Sources", "", CITATIONS]
    return "\n".join(lines)


def _base_model(name: str | None) -> list[str]:
    """The front matter's line; the hub refuses a card whose base_model is no hub id."""
    return [] if not name or Path(name).exists() else [f"base_model: {name}"]
