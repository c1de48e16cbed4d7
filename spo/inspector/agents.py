"""Three typed, read-only functions for agents (`app.py --mcp`): steps, a group, segments."""

from collections.abc import Callable
from functools import wraps

from spo.inspector import search, views, whatif
from spo.inspector.folder import Folder
from spo.inspector.reading import read_step
from spo.inspector.views import completion_brief, group_rows, row_statistics


def refusals_as_answers(function: Callable[..., dict]) -> Callable[..., dict]:
    """The same function returning {"error": sentence} for what a caller can cause."""

    @wraps(function)
    def answer(*args, **kwargs) -> dict:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            return {"error": str(error)}

    return answer


class Agents:
    """The tools, bound to the one folder they may read; clients see their docstrings."""

    def __init__(self, folder: Folder):
        self.folder = folder

    @property
    def tools(self) -> list[Callable[..., dict]]:
        return [self.list_steps, self.get_group, self.find_segments]

    @refusals_as_answers
    def list_steps(self, run: str = "") -> dict:
        """List the runs of the folder and the saved training steps of one of them.

        Args:
            run: name of a run; empty: the last one.
        """
        runs = list(self.folder.runs())
        chosen = run or runs[-1]
        steps = self.folder.steps(chosen)
        return {
            "runs": runs,
            "run": chosen,
            "steps": list(steps.paths),
            "skipped": steps.skipped,
        }

    @refusals_as_answers
    def get_group(self, run: str, step: int, group: int) -> dict:
        """Read one prompt, its completions with rewards, and where their credit went.

        Args:
            run: name of a run.
            step: a saved step.
            group: position of the prompt in the step, from 0.
        """
        found = read_step(self.folder.step_path(run, step))
        rows = group_rows(found, group)
        statistics = row_statistics(found)
        completions = [
            completion_brief(found, statistics, row) | {"text": found.rollouts.completions[row]}
            for row in range(rows.start, rows.stop)
        ]
        return {
            "prompt": found.rollouts.prompts[rows.start],
            "completions": completions,
            "credit_check": whatif.check_saved(found),
            "missing": list(found.missing),
            "calibration": views.calibration(found),
        }

    @refusals_as_answers
    def find_segments(
        self,
        run: str,
        advantage_min: float | None = None,
        advantage_max: float | None = None,
        entropy_min: float | None = None,
        text: str = "",
        start: int = 0,
    ) -> dict:
        """Find segments of a run by advantage, entropy at their start and text, counted by step.

        Args:
            run: name of a run.
            advantage_min: keep segments with at least this advantage.
            advantage_max: keep segments with at most this advantage.
            entropy_min: keep segments whose first token has at least this entropy in nats.
            text: an RE2 pattern that the segment's text must contain.
            start: position in the run to go on from: `next` of the answer before.
        """
        query = {
            "advantage_min": advantage_min,
            "advantage_max": advantage_max,
            "entropy_min": entropy_min,
            "text": text,
        }
        answer = search.find_in_run(self.folder.steps(run).paths, query, start)
        for name in ("counts", "skipped"):  # Gradio's encoder wants text as keys
            answer[name] = {str(step): value for step, value in answer[name].items()}
        return answer
