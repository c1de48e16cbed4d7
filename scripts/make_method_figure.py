"""A wrong completion of the bundled rollouts -> docs/method.svg: GRPO's credit beside SPO's.

    python scripts/make_method_figure.py

Every number in the picture is computed by `assign_credit` from the saved rollouts.
"""

import dataclasses
import sys
from html import escape
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spo.advantages import assign_credit, group_advantages  # noqa: E402
from spo.config import SPOConfig  # noqa: E402
from spo.rollouts import load_rollouts  # noqa: E402

STEP = ROOT / "assets" / "sample_rollouts" / "quickstart" / "rollouts" / "step-000050.parquet"
ROW = 44
SETTINGS = SPOConfig(
    entropy_percentile=0.2, lam=0.5, normalize_advantages=False, value_model_path="policy"
)
CHARACTER, NUMBER, LINE, TOP, BAR = 12, 40, 62, 134, 16
PANELS = (24, 392)
WIDTH, HEIGHT = 720, 504


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of the completion and where it is drawn: `line` and `column` in characters."""

    text: str
    line: int
    column: int
    entropy: float
    starts: bool
    advantage: float


def read_tokens() -> tuple[list[Token], str, float]:
    """The completion's tokens with SPO's credit, its prompt, and GRPO's credit."""
    rollouts = load_rollouts(STEP).rollouts
    credit = assign_credit(rollouts, SETTINGS)
    in_groups = group_advantages(rollouts.completion_rewards, rollouts.num_generations, "none")
    count = int(rollouts.completion_mask[ROW].sum())
    text = rollouts.completions[ROW].encode()
    ends = [0, *rollouts.token_ends[ROW, :count]]
    tokens, line, column = [], 0, 0
    for t in range(count):
        piece = text[ends[t] : ends[t + 1]].decode()
        starts = t > 0 and credit.segment_ids[ROW, t] != credit.segment_ids[ROW, t - 1]
        entropy, advantage = rollouts.token_entropies[ROW, t], credit.token_advantages[ROW, t]
        tokens.append(Token(piece, line, column, float(entropy), bool(starts), float(advantage)))
        line, column = (line + 1, 0) if piece == "\n" else (line, column + len(piece))
    prompt = rollouts.prompts[ROW].strip().rsplit(":", 1)[-1].strip(" =")
    return tokens, prompt, float(in_groups[ROW])


def colour(advantage: float) -> str:
    """White at 0, red at −1, blue at +1."""
    strength = min(1.0, abs(advantage))
    far = np.array([214, 69, 56] if advantage < 0 else [51, 107, 184])
    red, green, blue = np.round(255 + (far - 255) * strength * 0.85).astype(int)
    return f"rgb({red},{green},{blue})"


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{escape(words)}</text>'


def panel(left: int, tokens: list[Token], advantage: float | None) -> list[str]:
    """The completion, coloured by one advantage for all, or by each token's with the cuts."""
    parts, free = [], {}  # where the line's last number ends
    for token in tokens:
        x, y = left + token.column * CHARACTER, TOP + token.line * LINE
        shown = token.text.rstrip("\n")
        width = max(len(shown) * CHARACTER, 0 if shown else CHARACTER / 2)
        fill = colour(token.advantage if advantage is None else advantage)
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="24" fill="{fill}"/>')
        parts += [text(x + i * CHARACTER + 1, y + 17, c, "token") for i, c in enumerate(shown)]
        if advantage is None:
            high = BAR * min(1.0, token.entropy / 1.65)
            middle = x + min(width, CHARACTER) / 2 - 2
            parts.append(
                f'<rect x="{middle:.0f}" y="{y - 3 - high:.1f}" width="4" height="{high:.1f}" '
                f'fill="{"#1f2933" if token.starts else "#b6bec8"}"/>'
            )
            if token.starts or token is tokens[0]:
                at = max(x, free.get(token.line, 0))
                free[token.line] = at + NUMBER
                number = f"{token.advantage:+.2f}".replace("-", "−")
                parts.append(text(at, y + 37, number, "number"))
            if token.starts:
                parts.append(f'<path d="M{x},{y - 2}v28" stroke="#1f2933" stroke-width="2"/>')
    return parts


STYLE = """
text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2933 }
.token { font: 17px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.number { font-size: 11px }
.title { font-size: 17px; font-weight: 600 }
.words { font-size: 13px; fill: #52606d }
"""


def draw() -> str:
    tokens, prompt, in_group = read_tokens()
    parts = [
        text(
            PANELS[0],
            36,
            f"{prompt} ?  A wrong answer, reward 0: steps 3 and 4 slip.",
            "words",
        ),
        text(PANELS[0], 70, "GRPO", "title"),
        text(PANELS[0], 90, f"one advantage for all: {in_group:+.2f}".replace("-", "−"), "words"),
        text(PANELS[1], 70, "SPO", "title"),
        text(PANELS[1], 90, "one advantage for each segment. Bars: entropy;", "words"),
        text(PANELS[1], 107, "dark where it is among the highest and cuts", "words"),
        *panel(PANELS[0], tokens, in_group),
        *panel(PANELS[1], tokens, None),
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        "<title>A wrong completion: GRPO blames every token alike, SPO what slips</title>\n"
        f"<style>{STYLE}</style>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    (ROOT / "docs" / "method.svg").write_text(draw(), encoding="utf-8")
