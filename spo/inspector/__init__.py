"""Saved rollouts -> views (pure functions) -> the page that `app.py` serves.

    folder.py    a folder or file -> runs, steps, training curves; the only place that makes paths
    bounded.py   Parquet columns, read once their size was found acceptable
    reading.py   one Parquet file, distrusted -> `Step` (step.py), or one prompt of it; foreign.py
                 reads files without tokens
    text.py      byte offsets of tokens -> characters; turns.py: a chat prompt -> who said what
    views.py     `Step` -> what the reader draws; whatif.py: settings -> recomputed credit
    history.py   a run's index and curves -> `History`; verdicts.py: what stands out in it
    charts.py    `History` -> Vega-Lite, also maps.py and critic_charts.py; tables.py: -> rows
    search.py    segments that match a query, over a whole run; compare.py: one prompt at two steps
    markup.py    small pieces of HTML; picture.py: a completion as SVG; export.py: a group as a file
    shows.py     an address -> the values of every tab's components; ui.py: the components
    server.py    the functions the reader calls; agents.py: three functions for MCP clients
    notes.py     stars and comments; guard.py: who may ask the server
    static/      the reader: ES modules without a build step, its markup and style sheet

Imports neither torch nor transformers.
"""
