"""The Gradio page: components of every tab, and how an address reaches them.

Whatever a person does changes the address (`spo.go` of static/main.js); the address is answered by
`Shows.show`, which says the new values by the components' names. So Back, links and bookmarks work
for all of it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from spo.inspector import tables
from spo.inspector.agents import Agents
from spo.inspector.export import source
from spo.inspector.folder import Folder
from spo.inspector.markup import address, plain_markdown
from spo.inspector.notes import Notes
from spo.inspector.server import page_functions
from spo.inspector.shows import BOUNDS, TABS, Place, Shows, whole
from spo.inspector.turns import turns

ROUTE = """
const place = new URL("inspector-static/main.js", document.baseURI);
import(place.href).then((page) => page.route(trigger));
"""
READ = """
const place = new URL("inspector-static/main.js", document.baseURI);
import(place.href).then((page) => page.start(element, server));
"""
CLIENT = """() => JSON.stringify({hash: location.hash.slice(1), width: innerWidth,
  dark: document.body.classList.contains("dark")})"""
GO = "(address) => { if (address) spo.go(address); }"
ANEW = "step: null, prompt: null, completion: null, token: null, with: null, metric: null"

INPUTS_ONLY = ("router", "client", "go", "rendering", "noting")
WORDS = ("phrase", "asks", "text", "why", "comment", "reference")
"""Columns of tables that hold words; the others hold numbers and sort as such."""
Parts = dict[str, Any]


def build(folder: Folder, mcp: bool = False, annotate: bool = False) -> gr.Blocks:
    """The whole page of a folder."""
    notes = Notes(folder) if annotate else None
    shows = Shows(folder, notes)
    with gr.Blocks(title="SPO inspector", fill_width=True, analytics_enabled=False) as page:
        parts: Parts = {}
        header(parts)
        with gr.Tabs(elem_id="spo-tabs") as parts["tabs"]:
            makers: dict[str, Callable[[Parts], None]] = {
                "run": run_tab,
                "critic": critic_tab,
                "hacking": hacking_tab,
                "step": step_tab,
                "read": lambda parts: read_tab(parts, shows, annotate),
                "search": search_tab,
                "compare": compare_tab,
            }
            for name, label in TABS.items():
                with gr.Tab(label, id=name, elem_id=f"spo-tab-{name}") as tab:
                    makers[name](parts)
                tab.select(None, js=f"() => spo.go({{tab: '{name}'}})")
        follow_address(page, parts, shows)
        follow_choices(parts)
        follow_tables(parts, shows)
        follow_reader(parts, shows)
        for function in Agents(folder).tools if mcp else []:
            gr.api(function, api_name=function.__name__)
    return page


# --- components ---------------------------------------------------------------------------------


def header(parts: Parts) -> None:
    with gr.Row(elem_classes="spo-header", equal_height=True):
        parts["router"] = gr.HTML(
            html_template="<h1>SPO inspector</h1>", js_on_load=ROUTE, min_width=130, scale=0
        )
        parts["run"] = gr.Dropdown(
            label="Run", container=False, show_label=False, min_width=160, scale=1
        )
        parts["follow"] = gr.Checkbox(
            label="follow", container=False, min_width=100, scale=0, interactive=True
        )
    parts["note"] = gr.HTML(padding=False, elem_classes="spo-note")
    parts["client"] = gr.Textbox(visible=False)
    parts["go"] = gr.Textbox(visible=False)
    parts["following"] = gr.Timer(2.0, active=False)
    parts["growing"] = gr.Timer(1.5, active=False)


def run_tab(parts: Parts) -> None:
    with gr.Row(elem_classes="spo-run"):
        with gr.Column(scale=0, min_width=360, elem_classes="spo-left"):
            parts["verdicts"] = gr.HTML()
            parts["sample"] = gr.HTML()
        with gr.Column(scale=1, min_width=300):
            parts["charts"] = chart("The run: six charts with one cursor")
    with gr.Row():
        parts["average"] = gr.Slider(
            0, 100, step=1, value=5, label="Average over so many points (0: none)"
        )
        parts["overlay"] = gr.Dropdown(multiselect=True, label="Overlay other runs")
    heading("Which prompts are solved", "Mean reward; a cell opens the prompt at that step.")
    parts["matrix"] = chart("Prompt matrix")
    heading("Where |A| falls along the completions", "Mean |A| by tenth of the completion.")
    parts["credit_map"] = chart("|A| by position")
    heading(
        "Phrases", "Words in segments, by the mean advantage of these segments; a row searches."
    )
    with gr.Row():
        for name in ("credited", "blamed"):
            parts[name] = table(tables.PHRASE_COLUMNS, f"most {name}")
    heading("All metrics", "Any number of metrics.jsonl.")
    parts["metric"] = gr.Dropdown(label="Metric", container=False)
    parts["metric_chart"] = chart("Metric")


def critic_tab(parts: Parts) -> None:
    parts["critic_chart"] = chart("The critic: explained variance and calibration")
    heading("Worst misses", "Completions whose reward V(prompt) missed most; a row opens one.")
    parts["misses"] = table(tables.MISS_COLUMNS, "worst misses")


def hacking_tab(parts: Parts) -> None:
    parts["hacking_chart"] = chart("Reward functions over the steps")
    parts["scatter"] = chart("Reward against length")
    heading("Well rewarded and odd", "The best quarter: short, long, or repeating themselves.")
    parts["odd"] = table(tables.ODD_COLUMNS, "odd completions", (0.5, 0.7, 1, 0.6, 0.6, 4, 1.5))


def step_tab(parts: Parts) -> None:
    with gr.Row():
        parts["step"] = gr.Dropdown(label="Step", container=False, scale=0, min_width=160)
        gr.HTML('<p class="spo small hint">A column head sorts; a row opens the prompt.</p>')
    parts["prompts"] = table(
        tables.PROMPT_COLUMNS, "prompts of the step", (0.6, 4, 0.7, 0.7, 0.7, 0.7, 0.8, 0.8)
    )


def read_tab(parts: Parts, shows: Shows, annotate: bool) -> None:
    gr.HTML(
        html_template=source("reader.html"),
        js_on_load=READ,
        apply_default_css=False,
        server_functions=page_functions(shows.folder, shows.histories),
    )
    with gr.Accordion("Rendered: Markdown and LaTeX", open=False) as parts["rendering"]:
        parts["chat"] = gr.Chatbot(
            show_label=False,
            sanitize_html=True,
            buttons=[],
            latex_delimiters=[
                {"left": "$$", "right": "$$", "display": True},
                {"left": "\\[", "right": "\\]", "display": True},
                {"left": "\\(", "right": "\\)", "display": False},
            ],
        )
    if not annotate:
        return
    with gr.Accordion("Notes on completions", open=False) as parts["noting"]:
        with gr.Row():
            parts["star"] = gr.Checkbox(label="star", container=False, scale=0, min_width=80)
            parts["comment"] = gr.Textbox(
                label="Comment", show_label=False, container=False, placeholder="comment"
            )
            parts["save"] = gr.Button("Save for this completion", scale=0, min_width=200)
        parts["annotations"] = table(
            ("step", "prompt", "completion", "star", "comment"), "notes of this run"
        )


def search_tab(parts: Parts) -> None:
    with gr.Row():
        parts["text"] = gr.Textbox(label="Regular expression in the segment's text", scale=3)
        parts["scope"] = gr.Radio(
            [("all steps", "run"), ("this step", "step")], value="run", label="Where", scale=1
        )
    with gr.Row():
        for name in BOUNDS:
            measure, end = name.split("_")
            parts[name] = gr.Number(label=f"{measure} {end}", min_width=110)
    parts["find"] = gr.Button("Find segments", variant="primary")
    parts["progress"] = gr.Markdown()
    parts["counts"] = chart("Matches by step")
    parts["matches"] = table(tables.SEARCH_COLUMNS, "matches", (0.5, 0.6, 0.8, 0.5, 0.6, 0.6, 4))


def compare_tab(parts: Parts) -> None:
    parts["compare_prompt"] = gr.Dropdown(label="Prompt of the step on the right")
    with gr.Row():
        parts["other"] = gr.Dropdown(label="Before: step", min_width=120)
        parts["from"] = gr.Dropdown(label="completion", min_width=120)
        parts["to_step"] = gr.Dropdown(label="After: step", min_width=120)
        parts["to"] = gr.Dropdown(label="completion", min_width=120)
    parts["diff"] = gr.HTML()
    heading("The completion on the right under three methods", "Advantages on one scale.")
    parts["modes"] = gr.HTML()


def heading(title: str, words: str) -> None:
    gr.HTML(f'<div class="spo small"><h3>{title}</h3><p class="hint">{words}</p></div>')


def chart(label: str) -> gr.Plot:
    """A chart; style.css hides an empty one, as Gradio may lose what makes a hidden one visible."""
    return gr.Plot(label=label, show_label=False, elem_classes="spo-chart")


def table(columns: tuple[str, ...], label: str, widths: tuple[float, ...] = ()) -> gr.Dataframe:
    """A table that sorts by a click on a head; its rows are links."""
    return gr.Dataframe(
        headers=list(columns),
        datatype=["str" if name in WORDS else "number" for name in columns],
        column_widths=[f"{max(70, int(86 * width))}px" for width in widths] or None,
        column_count=len(columns),
        interactive=False,
        label=label,
        show_label=False,
        max_height=420,
        min_width=300,
        buttons=[],
        wrap=False,
        elem_classes="spo-table",
    )


# --- events -------------------------------------------------------------------------------------


def follow_address(page: gr.Blocks, parts: Parts, shows: Shows) -> None:
    """The address of the page -> `Shows.show` -> components."""
    named = [
        name for name in parts if name not in ("router", "client", "go", "rendering", "noting")
    ]
    outputs = [parts[name] for name in named]
    latest: dict[str, int] = {}

    def answer(client: str, session: str) -> Iterator[Parts]:
        """A newer address of the same browser ends the answer to an older one."""
        mine = latest[session] = latest.get(session, 0) + 1
        for values in shows.show(client):
            if latest.get(session) != mine:
                return
            yield {parts[name]: value for name, value in values.items()}

    def at_load(client: str, request: gr.Request) -> Iterator[Parts]:
        yield from answer(client, request.session_hash or "")

    def at_change(event: gr.EventData, request: gr.Request) -> Iterator[Parts]:
        yield from answer(event._data["client"], request.session_hash or "")

    quiet = {"show_progress": "hidden", "concurrency_limit": 8, "trigger_mode": "multiple"}
    page.load(at_load, parts["client"], outputs, js=CLIENT, api_visibility="private", **quiet)
    parts["router"].submit(at_change, None, outputs, api_visibility="private", **quiet)
    parts["growing"].tick(
        at_load, parts["client"], outputs, js=CLIENT, api_visibility="private", **quiet
    )


def follow_choices(parts: Parts) -> None:
    """What a person chooses changes the address."""

    def on(name: str, script: str, event: str = "input") -> None:
        getattr(parts[name], event)(None, parts[name], None, js=script)

    on("run", f"(run) => spo.go({{run, {ANEW}}})")
    on("overlay", "(runs) => spo.go({with: runs})")
    on("average", "(average) => spo.go({average})", "release")
    on("metric", "(metric) => spo.go({metric})")
    on("step", "(step) => spo.go({step, prompt: null, completion: null, token: null})")
    on("compare_prompt", "(prompt) => spo.go({prompt, other: null, from: null, to: null})")
    on("other", "(other) => spo.go({other, from: null})")
    on("from", "(from) => spo.go({from})")
    on("to_step", "(step) => spo.go({step, to: null})")
    on("to", "(to) => spo.go({to})")
    fields = ["text", "scope", *BOUNDS]
    names = ", ".join(["text", "scope", *BOUNDS.values()])
    script = f"({names}) => spo.go({{tab: 'search', {names}}})"
    inputs = [parts[name] for name in fields]
    parts["find"].click(None, inputs, None, js=script)
    parts["text"].submit(None, inputs, None, js=script)
    parts["follow"].input(
        lambda on: gr.Timer(active=on),
        parts["follow"],
        parts["following"],
        api_visibility="private",
    )


def follow_tables(parts: Parts, shows: Shows) -> None:
    """A row of a table leads to what it is about."""

    def fields_of(name: str, row: list, place: Place) -> dict[str, Any]:
        match name:
            case "prompts":
                return {"tab": "read", "step": place.step, "prompt": int(row[0]) - 1}
            case "misses" | "annotations":
                step, prompt, completion = (int(x) for x in row[:3])
                return reader_at(step, prompt, completion)
            case "odd":
                return reader_at(place.step, int(row[0]), int(row[1]))
            case "matches":
                step, prompt, completion, token = (int(x) for x in row[:4])
                return reader_at(step, prompt, completion) | {"token": token - 1}
        return {"tab": "search", "text": quoted(str(row[0]))}

    for name in ("prompts", "misses", "odd", "matches", "credited", "blamed", "annotations"):
        if name not in parts:
            continue

        def pick(client: str, event: gr.SelectData, name: str = name) -> str:
            place = shows.place(client)
            return address(run=place.run, **fields_of(name, event.row_value, place))

        parts[name].select(
            pick, parts["client"], parts["go"], js=CLIENT, api_visibility="private"
        ).then(None, parts["go"], None, js=GO)


def reader_at(step: int | None, prompt: int, completion: int) -> dict[str, Any]:
    return {"tab": "read", "step": step, "prompt": prompt - 1, "completion": completion - 1}


def quoted(text: str) -> str:
    """A text as an RE2 pattern that means itself.

    >>> quoted("a+b")
    'a\\\\+b'
    """
    return "".join(f"\\{char}" if char in SPECIAL else char for char in text)


SPECIAL = set("\\.+*?()|[]{}^$")


def follow_reader(parts: Parts, shows: Shows) -> None:
    """The reader's completion rendered, its notes, and the newest step where it is followed."""

    def render(client: str) -> list[dict[str, str]]:
        place = shows.place(client)
        step, row = shows.completion_at(place)
        said = [
            {
                "role": "assistant" if turn["role"] == "assistant" else "user",
                "content": plain_markdown(turn["text"]),
            }
            for turn in turns(step.rollouts.prompts[row])
        ]
        answer = plain_markdown(step.rollouts.completions[row])
        return [*said, {"role": "assistant", "content": answer}]

    def newest(client: str) -> str:
        place = shows.place(client)
        steps = list(shows.folder.steps(place.run).paths)
        if not steps or place.step == steps[-1]:
            return ""
        kept = {key: x for key, x in place.fields.items() if key not in ("run", "step", "token")}
        return address(run=place.run, step=steps[-1], **kept)

    private = {"js": CLIENT, "api_visibility": "private"}
    parts["rendering"].expand(render, parts["client"], parts["chat"], **private)
    parts["following"].tick(newest, parts["client"], parts["go"], **private).then(
        None, parts["go"], None, js=GO
    )
    if "save" not in parts:
        return

    def save(client: str, star: bool, comment: str) -> list[list]:
        place = shows.place(client)
        prompt, completion = (whole(place.fields.get(key)) or 0 for key in ("prompt", "completion"))
        where = {"step": place.step, "prompt": prompt, "completion": completion}
        shows.notes.write(place.run, where, bool(star), comment or "")
        return listed(client)

    def listed(client: str) -> list[list]:
        return [
            [
                note["step"],
                note["prompt"] + 1,
                note["completion"] + 1,
                int(note["star"]),
                note["comment"],
            ]
            for note in shows.notes.read(shows.place(client).run)
        ]

    script = CLIENT.replace("() =>", "(_, star, comment) => [").rstrip() + ", star, comment]"
    inputs = [parts["client"], parts["star"], parts["comment"]]
    parts["save"].click(save, inputs, parts["annotations"], js=script, api_visibility="private")
    parts["noting"].expand(listed, parts["client"], parts["annotations"], **private)
