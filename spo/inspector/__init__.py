"""Saved rollouts -> views (pure functions) -> the page that `app.py` serves.

    folder.py    a folder or file -> runs, steps, training curves; the only place that makes paths
    reading.py   one Parquet file, distrusted -> `Step`
    text.py      byte offsets of tokens -> character offsets
    views.py     `Step` -> what the page draws: summary, list of completions, prompt group
    whatif.py    settings -> recomputed credit, and the check of the saved one
    search.py    segments that match a query, over a whole run
    export.py    a prompt group -> one self-contained HTML file
    server.py    the functions the page calls, each answering with an envelope
    agents.py    the same reading as three typed functions for MCP clients
    static/      the page itself: ES modules without a build step, and their style sheet

Imports neither torch nor transformers.
"""
