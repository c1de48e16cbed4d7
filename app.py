"""The inspector: `python app.py RUN_DIR` shows saved rollouts token by token, on 127.0.0.1.

Also the entry point of a Hugging Face Space. Arguments, wiring and security headers are here; what
is shown is made in spo/inspector.
"""

import argparse
import contextlib
import os
import re
import socket
import sys
import threading
import warnings
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from spo.inspector.arguments import parse

if __name__ == "__main__":
    parse()  # --help and mistakes end here, before Gradio takes its seconds

import gradio as gr
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

import spo.inspector
from spo.inspector.folder import Folder
from spo.inspector.guard import EMBEDDING, LOCAL_HOSTS, Guard, known_hosts
from spo.inspector.shows import Shows
from spo.inspector.ui import build

HERE = Path(__file__).parent
STATIC = Path(spo.inspector.__file__).parent / "static"
SAMPLES = HERE / "assets" / "sample_rollouts"
IMPORTED = re.compile(r'\b(?:from|import)"\./([\w-]+\.js)"')
"""What a built script of Gradio imports."""


demo = build(Folder(SAMPLES))
"""The bundled rollouts: what a Space shows, and what runs without arguments."""


def theme() -> gr.themes.Base:
    """Gradio's plainest; the system's fonts, so that nothing is fetched; blues dark enough."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    blues = {"button_primary_background_fill": "*primary_700"}
    blues["button_primary_background_fill_hover"] = "*primary_800"
    both = blues | {f"{name}_dark": blue for name, blue in blues.items()}
    return gr.themes.Base(primary_hue="blue", **fonts).set(**both)


def head() -> str:
    """The style sheet; and what draws Gradio's charts, so that it loads while the first is made."""
    assets = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
    waiting = [path.name for path in (*assets.glob("AltairPlot-*.js"), *assets.glob("Plot-*.js"))]
    early: list[str] = []
    while waiting:
        name = waiting.pop()
        if name not in early and (assets / name).is_file():
            early.append(name)
            waiting += IMPORTED.findall((assets / name).read_text(encoding="utf-8"))
    links = ['<link rel="stylesheet" href="inspector-static/style.css">']
    return "".join(
        [*links, *(f'<link rel="modulepreload" href="assets/{name}">' for name in early)]
    )


def launch(page: gr.Blocks, args: argparse.Namespace, **more):
    """Serve it; `more` goes to Blocks.launch (tests do not block the main thread)."""
    in_space = "SPACE_ID" in os.environ
    hosts = None if in_space else known_hosts(args.host, args.share)
    ancestors = EMBEDDING if in_space else "'self'"

    @contextlib.asynccontextmanager
    async def guarded(app):
        # around everything: Gradio puts its own CORS outside the middleware of app_kwargs
        app.middleware_stack = Guard(app.middleware_stack, hosts, args.token, ancestors)
        yield

    return page.launch(
        server_name="0.0.0.0" if in_space else args.host,
        server_port=args.port,
        share=args.share,
        inbrowser=args.open,
        theme=theme(),
        head=head(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        allowed_paths=[],
        max_file_size="1kb",
        enable_monitoring=args.monitoring,
        mcp_server=args.mcp,
        app_kwargs={
            "routes": [Mount("/inspector-static", StaticFiles(directory=STATIC))],
            "lifespan": guarded,
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
        **more,
    )


def check_port(args: argparse.Namespace) -> None:
    """Raises ValueError where the port asked for is taken; without one Gradio looks for a free."""
    if args.port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except OSError as error:
            raise ValueError(
                f"Port {args.port} is in use; choose another, or leave --port out."
            ) from error


def check_token(args: argparse.Namespace) -> None:
    """Raises ValueError where other machines are let in without a token."""
    if args.host not in LOCAL_HOSTS and not args.token:
        raise ValueError(
            f"--host {args.host} lets other machines in: give --token SECRET as well, and open "
            "the address with ?token=SECRET."
        )


def check_mcp(args: argparse.Namespace) -> None:
    """Raises ValueError where --mcp lacks its package."""
    if not args.mcp:
        return
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise ValueError('--mcp needs the package mcp: pip install "gradio[mcp]".') from error


def prepare(folder: Folder) -> None:
    """Reads what the first view shows, which is asked for within seconds."""
    for _ in Shows(folder).show("{}"):
        pass


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    args.folder = args.folder or str(SAMPLES)
    warnings.filterwarnings("ignore", category=UserWarning, module="dataclasses|spo.inspector")
    try:
        check_token(args)
        check_port(args)
        check_mcp(args)
        folder = Folder(args.folder)
        page = demo
        if args.folder != str(SAMPLES) or args.mcp or args.annotate:
            page = build(folder, args.mcp, args.annotate)
    except ValueError as error:
        sys.exit(str(error))
    threading.Thread(target=prepare, args=(folder,), daemon=True).start()
    launch(page, args)


if __name__ == "__main__":
    main()
