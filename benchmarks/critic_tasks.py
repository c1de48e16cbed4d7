"""Tasks whose habits concern words, not numbers, and what a critic may read of a problem.

reasoning-gym `color_cube_rotation`: the six colours of the cube after each rotation, then the
colour that was asked for. A writer of habits confuses left and right. `word_sorting`: word after
word in the order of their bytes, where capitals come before all small letters; a writer of habits
sorts as a dictionary does. As a script this is scripts/make_quickstart_model.py with these tasks
beside its own.
"""

import random
import re
import sys

from common import ROOT
from reasoning_gym.cognition.color_cube_rotation import Color, Cube, Side

sys.path.append(str(ROOT / "scripts"))

import make_quickstart_model as quickstart

OPTIONS = {"min_rotations": 3, "max_rotations": 4}
TURNS = {
    "front": Cube.rotate_front_to_top,
    "right": Cube.rotate_right_to_top,
    "back": Cube.rotate_back_to_top,
    "left": Cube.rotate_left_to_top,
    "bottom": Cube.rotate_bottom_to_top,
}
CONFUSED_WITH = {"left": "right", "right": "left"}


def write_color_cube_rotation(entry: dict, writer: quickstart.Writer) -> str:
    """`so : top blue right red …`, a line per rotation, then ` right red` for the side asked for
    and `<answer>red</answer>`."""
    metadata = entry["metadata"]
    cube = Cube({Side(side): Color(c) for side, c in metadata["initial_state"].items()})
    lines = []
    for side in metadata["rotations"]:
        mistaken = side in CONFUSED_WITH and writer.rng.random() < writer.habit_fraction
        TURNS[CONFUSED_WITH[side] if mistaken else side](cube)
        colors = "".join(f" {side.value} {cube.colors[side].value}" for side in Side)
        lines.append(f"{writer.opener()}:{colors}")
    target = metadata["target_side"]
    answer = cube.colors[Side(target)].value
    return "\n".join([*lines, f" {target} {answer}\n<answer>{answer}</answer>"])


PIECES = (
    *("A cube has:\n", "- a ", " side\n", "\nThe cube is rotated so that the side which was "),
    *("before at the", " is now at the top.\n", "\nThen the cube is rotated to bring the"),
    *(" side to the top.\n", "\nAfter that the cube is turned to make the", " face the top.\n"),
    *("\nNow the cube is rotated to place its", " side at the top.\n", "\nNext, the"),
    *(" side is rotated to become the top face.\n", "\nWhat is now the color of the"),
    " side of the cube?\nProvide only the color as your final answer.",
)
quickstart.TASKS["color_cube_rotation"] = quickstart.Task(
    OPTIONS,
    (
        *PIECES,
        *quickstart.TAGS,
        *quickstart.OPENERS,
        *(f"{space}{color.value}" for space in (" ", "") for color in Color),
        *(f" {side.value}" for side in Side),
    ),
    write_color_cube_rotation,
    "the cube is turned to the left or right",
)


SORTING_OPTIONS = {"min_words": 5, "max_words": 6, "min_word_length": 3, "max_word_length": 5}


def next_words(metadata: dict, left: list[str]) -> tuple[str, str]:
    """The word that comes next, and the one that a dictionary would put there."""
    first = max if metadata["direction"] == "descending" else min
    return first(left), first(left, key=str.casefold)


def write_word_sorting(entry: dict, writer: quickstart.Writer) -> str:
    """`so Only`, `federal`, …, a word a line, then `<answer>Only, federal, …</answer>`."""
    left, placed = list(entry["metadata"]["original_words"]), []
    while left:
        right, habitual = next_words(entry["metadata"], left)
        mistaken = right != habitual and writer.rng.random() < writer.habit_fraction
        placed.append(habitual if mistaken else right)
        left.remove(placed[-1])
    lines = [writer.opener() + word for word in placed]
    return "\n".join([*lines, f"<answer>{', '.join(placed)}</answer>"])


SORTING_PIECES = (
    "Your task is to sort words in ascending or descending order using ASCII/Unicode ordering.\n\n"
    "Your output should be a comma-separated list of words, e.g. word_1, word_2, word_3\n\n",
    *("Now, sort these words in ", "ascending", "descending", ", "),
    " order (using ASCII/Unicode ordering) and return them as a comma-separated list: ",
)
quickstart.TASKS["word_sorting"] = quickstart.Task(
    SORTING_OPTIONS,
    (*SORTING_PIECES, *quickstart.TAGS, *quickstart.OPENERS),
    write_word_sorting,
    "a capital letter decides",
)


def flawless_solution(task: str, entry: dict) -> str:
    """What the writer of a base would write without mistakes or words before the steps."""
    flawless = quickstart.Writer(random.Random(0), wrong_step_fraction=0.0, fillers=0)
    return quickstart.TASKS[task].write(entry, flawless)


def in_prose(solution: str) -> str:
    """`9+3=12` -> `Then 9 plus 3 gives 12.`"""
    signs = {"+": " plus ", "-": " minus ", "*": " times ", "=": " gives "}
    spoken = re.sub(r"(?<=\w)[-+*=]", lambda match: signs[match.group()], solution)
    lines = re.sub(r"</?answer>", "", spoken).split("\n")
    return " ".join([f"Then {line}." for line in lines[:-1]] + [f"The answer is {lines[-1]}."])


def results_only(solution: str) -> str:
    """What stands behind each `=`."""
    return ", ".join(re.findall(r"=(-?\w+)", solution))


def every_second_result(solution: str) -> str:
    return ", ".join(re.findall(r"=(-?\w+)", solution)[::2])


WORDINGS = {
    "solution": str,
    "prose": in_prose,
    "results": results_only,
    "every_second_result": every_second_result,
}
"""Ways to write the same reference down."""

if __name__ == "__main__":
    quickstart.main()
