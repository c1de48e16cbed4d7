"""A task whose habit concerns words, not numbers, and what a critic may read of a problem.

reasoning-gym `color_cube_rotation`: the six colours of the cube after each rotation, then the
colour that was asked for. A writer of habits confuses left and right. As a script this is
scripts/make_quickstart_model.py with that task beside its own.
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
