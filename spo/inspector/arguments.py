"""What the inspector may be told. Standard library only: --help waits for nothing."""

import argparse


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="See where the credit went.")
    parser.add_argument(
        "folder",
        nargs="?",
        default="",
        help="a run, a folder of runs or a Parquet file; without it, bundled sample rollouts",
    )
    parser.add_argument("--port", type=int, default=None, help="default: the first free from 7860")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--token", default="", help="what visitors show once as ?token=…; needed with --host"
    )
    parser.add_argument("--open", action="store_true", help="open the browser")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio")
    parser.add_argument("--monitoring", action="store_true", help="Gradio's /monitoring page")
    parser.add_argument(
        "--mcp", action="store_true", help="serve three read-only functions to agents over MCP"
    )
    parser.add_argument(
        "--annotate",
        action="store_true",
        help="stars and comments on completions, kept in annotations.jsonl beside the run",
    )
    return parser.parse_args(argv)
