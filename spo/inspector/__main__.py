"""`python -m spo.inspector RUN_DIR`: the app app.py, from any folder."""

from spo.entry_points import inspect

if __name__ == "__main__":
    inspect()
