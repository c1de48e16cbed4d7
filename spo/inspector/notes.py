"""Stars and comments on completions, kept in `annotations.jsonl` beside the run (`--annotate`)."""

import json
import time
from pathlib import Path
from typing import Any

from spo.inspector.folder import Folder

NAME = "annotations.jsonl"
MAX_COMMENT = 2000
MAX_BYTES = 16 << 20


class Notes:
    """The annotations of a folder's runs; the newest of a completion counts."""

    def __init__(self, folder: Folder):
        self.folder = folder

    def write(self, run: str, place: dict[str, int], star: bool, comment: str) -> None:
        """Append one; an earlier one of the same completion stays in the file.

        Args:
            place: step, prompt (position in the step) and completion.

        Raises:
            ValueError: there is no such run or step, or the comment is too long.
        """
        if len(comment) > MAX_COMMENT:
            raise ValueError(f"A comment has at most {MAX_COMMENT} characters.")
        self.folder.step_path(run, place["step"])
        entry = {**place, "star": star, "comment": comment, "time": round(time.time())}
        with self._path(run).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def read(self, run: str) -> list[dict[str, Any]]:
        """One annotation a completion, the last one written, in the order of the steps."""
        path = self._path(run)
        if not path.is_file():
            return []
        with path.open("rb") as file:
            lines = file.read(MAX_BYTES).splitlines()
        found = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # cut short
            if is_entry(entry):
                found[entry["step"], entry["prompt"], entry["completion"]] = entry
        return [found[key] for key in sorted(found)]

    def _path(self, run: str) -> Path:
        home = self.folder.runs().get(run)
        if home is None:
            raise ValueError(f"There is no run {run!r} here.")
        path = (home.parent if home.is_file() else home) / NAME
        if not self.folder.root.is_file() and not self.folder.is_inside(path):
            raise ValueError(f"{NAME} leads outside the folder.")
        return path


def is_entry(entry: Any) -> bool:
    """Whether a JSON value is an annotation."""
    if not isinstance(entry, dict):
        return False
    places = all(type(entry.get(name)) is int for name in ("step", "prompt", "completion"))
    return places and isinstance(entry.get("star"), bool) and isinstance(entry.get("comment"), str)
