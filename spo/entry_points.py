"""train_spo.py and app.py as commands: of a wheel (`spo.bundled`), else of the checkout."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from spo.inspector.arguments import parse

PACKAGE = Path(__file__).resolve().parent


def load(name: str) -> ModuleType:
    """The module `train_spo` or `app`, with recipes/ and assets/ beside it."""
    if (PACKAGE / "bundled").is_dir():
        return importlib.import_module(f"spo.bundled.{name}")
    if str(PACKAGE.parent) not in sys.path:
        sys.path.append(str(PACKAGE.parent))
    return importlib.import_module(name)


def train() -> None:
    load("train_spo").main(sys.argv[1:])


def inspect() -> None:
    parse(sys.argv[1:])  # --help and mistakes end here, before Gradio takes its seconds
    try:
        app = load("app")
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "starlette"):
            raise
        sys.exit('The inspector needs Gradio: pip install "spo[inspector]".')
    app.main(sys.argv[1:])
