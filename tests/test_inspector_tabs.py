"""The tabs around the reader in a real browser: the run, critic, hacking, step, search, compare."""

import json
import re

import numpy as np
import pytest
from inspector_browser import STEPS, Visit, saved
from inspector_fixtures import write_run

from spo.inspector import charts, maps, tables
from spo.inspector.charts import Look
from spo.inspector.folder import Folder
from spo.inspector.history import Histories
from spo.inspector.shows import Shows
from spo.run import index

pytest_plugins = ["inspector_plugin"]

LOOK = Look(1200, False)


def first_view(opened) -> None:
    opened.page.wait_for_selector(".verdicts")
    opened.page.wait_for_selector(".spo-chart canvas, .spo-chart svg.marks")
    opened.page.wait_for_selector(".sample .t")


# --- run --------------------------------------------------------------------------------------


def test_a_newcomer_sees_verdicts_chart_and_completion_at_once(visit):
    """At 1280 × 720, without scrolling, and no more than 25 controls."""
    opened = visit("run=long", width=1280, height=720)
    first_view(opened)
    for selector in (".verdicts h3", ".sample .t >> nth=0"):
        box = opened.page.locator(selector).first.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 720
    chart = opened.page.locator(".spo-chart canvas, .spo-chart svg.marks").first.bounding_box()
    assert chart["y"] + 180 <= 720  # the first row of charts
    controls = opened.ask(
        """() => [...document.querySelectorAll('a, button, input, select, textarea, [role=tab]')]
        .filter((e) => { const b = e.getBoundingClientRect();
          return e.checkVisibility() && b.width && b.top < 720; }).length"""
    )
    assert controls <= 25


@pytest.mark.parametrize("width", [375, 1200])
def test_the_run_fits_the_window(visit, width):
    opened = visit("run=long", width=width, height=800)
    first_view(opened)
    assert opened.ask("document.documentElement.scrollWidth") <= width
    assert opened.page.locator(".verdicts").is_visible()
    token = opened.page.locator(".sample .t >> nth=0")
    assert token.is_visible()


def test_the_sample_leads_to_the_reader(visit, root):
    opened = visit("run=alpha&step=2")
    first_view(opened)
    opened.page.click(".sample a")
    opened.page.wait_for_selector(".card .t")
    opened.page.wait_for_selector(".detail .token-text")
    assert "tab=read" in opened.page.url


def test_a_phrase_leads_to_its_search(visit):
    opened = visit("run=long")
    cell = opened.page.locator(".spo-table >> nth=0 >> [data-testid=cell-0-0]")
    cell.wait_for()
    cell.click()
    opened.page.wait_for_selector("text=segments in 60 of 60 steps")
    assert opened.page.locator(".spo-table [data-testid=cell-0-6]").first.is_visible()


def test_another_run_is_overlaid_and_stays_in_the_link(visit):
    opened = visit("run=long&with=alpha,nocritic&average=9")
    first_view(opened)
    opened.page.wait_for_selector("text=nocritic")
    assert opened.page.input_value("input[type=number]") == "9"


def test_the_cursor_and_a_click_in_a_chart_lead_to_the_step(visit):
    """Wherever in a chart: the step under the pointer, and a link to it."""
    opened = visit("run=long", width=1440, height=860)
    first_view(opened)
    box = opened.page.locator(".spo-chart canvas").first.bounding_box()
    x, y = box["x"] + 150, box["y"] + 90
    opened.page.mouse.move(x - 5, y)
    opened.page.mouse.move(x, y)
    opened.page.locator("#vg-tooltip-element.visible").wait_for()
    said = opened.text("#vg-tooltip-element.visible")
    assert "reward" in said
    step = int(re.search(r"step\D*(\d+)", said)[1])
    assert 1 <= step <= 60
    opened.page.mouse.click(x, y)
    opened.page.locator("#spo-tab-step .spo-table [data-testid=cell-0-1]").wait_for()
    assert opened.page.url.endswith(f"tab=step&step={step}")


def test_a_step_that_was_not_saved_leads_to_the_nearest(root):
    shows = Shows(Folder(root))
    for asked, found in ((4, 3), (99, 5), (-3, 1), (2, 2)):  # 1, 2, 3 and 5 are saved
        client = json.dumps({"hash": f"run=alpha&step={asked}"})
        assert shows.place(client).step == found


def test_charts_hold_the_runs_numbers(root):
    history = Histories(Folder(root)).get("alpha")
    spec = charts.run_charts([history], [], LOOK, 0)
    (chart,) = (view for view in spec["concat"] if view["title"] == "Reward")
    rows = chart["data"]["values"]
    rewards = {row["step"]: row["value"] for row in rows if row["line"] == "reward"}
    assert rewards == {step: pytest.approx(step / 10) for step in range(1, 6)}
    json.dumps(spec, allow_nan=False)


def test_the_prompt_matrix_orders_by_reward_and_links_to_groups(root):
    history = Histories(Folder(root)).get("alpha")
    cells, order = maps.matrix_cells(history)
    for cell in cells:
        step = saved(root, cell["step"])
        rewards = step.rollouts.completion_rewards.reshape(-1, 4)
        assert cell["reward"] == pytest.approx(rewards[cell["prompt"]].mean(), abs=1e-3)
        assert f"step={cell['step']}" in cell["link"]
        assert f"prompt={cell['prompt']}" in cell["link"]
    means = [np.mean([c["reward"] for c in cells if c["prompt"] == prompt]) for prompt in order]
    assert means == sorted(means)
    assert len(cells) == 3 * len(STEPS)


def test_phrases_are_those_of_a_plain_count(root):
    step = saved(root)
    credited, blamed = tables.phrases([step])
    for phrase, count, advantage, _ in credited + blamed:
        found = []
        for row in range(len(step.rollouts)):
            ids = step.credit.segment_ids[row]
            ends = [0, *step.rollouts.token_ends[row]]
            data = step.rollouts.completions[row].encode()
            for segment in range(ids.max() + 1):
                at = np.flatnonzero(ids == segment)
                text = data[ends[at[0]] : ends[at[-1] + 1]].decode()
                if phrase in tables.grams(text):
                    found.append(step.credit.token_advantages[row, at[0]])
        assert len(found) == count
        assert np.mean(found) == pytest.approx(advantage, rel=0.01)


# --- critic, hacking, step ----------------------------------------------------------------------


def test_the_critics_worst_misses_lead_to_the_reader(visit, root):
    opened = visit("run=alpha&tab=critic")
    cell = opened.page.locator("#spo-tab-critic [data-testid=cell-0-0]")
    cell.wait_for()
    step, prompt, completion = (
        int(opened.text(f"#spo-tab-critic [data-testid=cell-0-{at}]")) for at in range(3)
    )
    rollouts = saved(root, step).rollouts
    misses = np.abs(rollouts.token_values[:, 0] - rollouts.completion_rewards)
    row = 4 * (prompt - 1) + completion - 1
    assert misses[row] == pytest.approx(misses.max(), abs=0.02)
    cell.click()
    opened.page.wait_for_selector(".card .t")
    opened.wait(f"location.hash.includes('step={step}')")
    assert opened.text(".prompt summary") == f"Prompt {prompt} of 3"


def test_a_run_without_critic_says_so(visit):
    opened = visit("run=nocritic&tab=critic")
    opened.page.wait_for_selector("text=no critic")


def test_hacking_lists_well_rewarded_odd_completions(visit, root):
    opened = visit("run=alpha&step=2&tab=hacking")
    opened.page.wait_for_selector("#spo-tab-hacking [data-testid=cell-0-0]")
    rows = tables.odd_completions(saved(root))
    assert opened.text("#spo-tab-hacking [data-testid=cell-0-2]").strip() == rows[0][2]
    best = saved(root).rollouts.completion_rewards.max()
    assert all(row[3] == best for row in rows)


def test_the_step_table_sorts_and_opens_the_prompt(visit, root):
    opened = visit("run=alpha&step=2&tab=step")
    opened.page.wait_for_selector("#spo-tab-step [data-testid=cell-2-0]")
    lengths = saved(root).rollouts.lengths.reshape(-1, 4).mean(1)
    head = opened.page.locator("#spo-tab-step th >> text=tokens").first
    head.click()
    longest = int(np.argmin(lengths)) + 1
    opened.wait(
        "document.querySelector('#spo-tab-step [data-testid=cell-0-0]').textContent.trim()"
        f" === '{longest}'"
    )
    opened.page.click("#spo-tab-step [data-testid=cell-0-0]")
    opened.page.wait_for_selector(".card .t")
    assert opened.text(".prompt summary") == f"Prompt {longest} of 3"


def test_a_step_can_be_chosen(visit):
    opened = visit("run=alpha&step=2&tab=step")
    opened.page.wait_for_selector("#spo-tab-step [data-testid=cell-0-0]")
    opened.page.click("#spo-tab-step input")
    opened.page.click("[role=option] >> text=3")
    opened.wait("location.hash.includes('step=3')")


# --- search -------------------------------------------------------------------------------------


def test_a_search_counts_and_opens_and_stays_in_the_link(visit, root):
    opened = visit("run=alpha&step=2&tab=search")
    opened.page.fill("#spo-tab-search >> label:has-text('advantage max') >> input", "-1")
    opened.page.click("text=Find segments")
    expected = 0
    for step in STEPS:
        credit = saved(root, step).credit
        firsts = np.diff(credit.segment_ids, axis=1, prepend=-2) != 0
        expected += int(
            (firsts & (credit.segment_ids >= 0) & (credit.token_advantages <= -1)).sum()
        )
    opened.page.wait_for_selector(f"text={expected} segments in 4 of 4 steps")
    assert "amax=-1" in opened.page.url
    again = visit(opened.page.url.split("#")[1])
    again.page.wait_for_selector(f"text={expected} segments in 4 of 4 steps")
    field = "#spo-tab-search >> label:has-text('advantage max') >> input"
    assert again.page.input_value(field) == "-1"
    again.page.click("#spo-tab-search [data-testid=cell-0-0]")
    again.page.wait_for_selector(".detail .token-text")


def test_a_wrong_pattern_is_one_sentence(visit):
    opened = visit("run=alpha&tab=search&text=(")
    opened.page.wait_for_selector("text=The pattern is not valid")


# --- compare ------------------------------------------------------------------------------------


def test_a_prompt_is_compared_across_the_training(visit, root):
    opened = visit("run=alpha&step=5&tab=compare&prompt=0&from=1&to=2")
    opened.page.wait_for_selector(".diff .t")
    after = opened.ask(
        "[...document.querySelectorAll('.diff :is(span, ins)')].map((t) => t.textContent).join('')"
    )
    assert after == saved(root, 5).rollouts.completions[2]
    before = opened.ask(
        "[...document.querySelectorAll('.diff :is(span, del)')].map((t) => t.textContent).join('')"
    )
    kept = saved(root, 1).rollouts.completions[1]
    assert sorted(before.replace(" ", "")) == sorted(kept.replace(" ", ""))
    counts = opened.ask("[...document.querySelectorAll('.modes .count')].map((c) => c.textContent)")
    length = int(saved(root, 5).rollouts.lengths[2])
    segments = saved(root, 5).credit.segment_ids[2].max() + 1
    assert [int(count.split()[0]) for count in counts] == [1, segments, length]


# --- the index ----------------------------------------------------------------------------------


def test_the_trainers_index_is_read_instead_of_the_files(tmp_path):
    run = write_run(tmp_path / "alpha", steps=(1, 2))
    first = Histories(Folder(tmp_path)).get("alpha")
    lines = [line | {"entropy": [9.0] * 12} for line in first.lines]
    text = "\n".join(json.dumps(line) for line in lines)
    (run / "rollouts" / index.NAME).write_text(text + "\n")
    again = Histories(Folder(tmp_path)).get("alpha")
    assert again.indexed("entropy").values.tolist() == [9.0, 9.0]


def test_a_run_without_index_is_read_in_the_background_once(tmp_path, monkeypatch):
    from spo.inspector import history

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_run(tmp_path / "runs" / "alpha", steps=range(1, 41))
    histories = Histories(Folder(tmp_path / "runs"))
    first = histories.get("alpha")
    assert len(first.lines) >= history.FIRST_LINES
    histories.threads["alpha"].join(30)
    whole = histories.get("alpha")
    assert (len(whole.lines), whole.progress) == (40, 1.0)
    monkeypatch.setattr(history, "load_for_index", pytest.fail)  # no file is opened again
    again = Histories(Folder(tmp_path / "runs")).get("alpha")
    assert again.lines == whole.lines
    assert not list((tmp_path / "runs").rglob("*.jsonl.tmp"))


def test_evaluations_are_a_run_of_their_own(tmp_path):
    run = write_run(tmp_path / "alpha", steps=(1, 2))
    for step in (1, 2):
        source = run / "rollouts" / f"step-{step:06d}.parquet"
        (run / "rollouts" / f"eval-step-{step:06d}.parquet").write_bytes(source.read_bytes())
    folder = Folder(tmp_path)
    assert list(folder.runs()) == ["alpha/eval", "alpha"]
    assert list(folder.steps("alpha").paths) == [1, 2]
    assert all(p.name.startswith("eval-") for p in folder.steps("alpha/eval").paths.values())
    assert len(Histories(folder).get("alpha/eval").lines) == 2
    lines = [line | {"evaluation": True} for line in Histories(folder).get("alpha").lines]
    text = "\n".join(json.dumps(line) for line in lines)
    (run / "rollouts" / index.NAME).write_text(text + "\n")
    (run / "metrics.jsonl").unlink()
    rewards = Histories(folder).get("alpha").series("eval/reward")
    assert rewards.steps.tolist() == [1, 2]


# --- notes --------------------------------------------------------------------------------------


def test_notes_are_kept_beside_the_run(root, tmp_path):
    from inspector_browser import serve

    write_run(tmp_path / "alpha", steps=(1,))
    server = serve(tmp_path, "--annotate")
    with Visit(server.address, "run=alpha&tab=read&prompt=1&completion=2") as opened:
        opened.page.wait_for_selector(".card .t")
        opened.page.click("text=Notes on completions")
        opened.page.fill("[placeholder=comment]", "guesses <b>right</b>")
        opened.page.get_by_label("star", exact=True).check()
        opened.page.click("text=Save for this completion")
        opened.page.wait_for_selector("[data-testid=cell-0-4] >> text=guesses")
        assert opened.problems == []
    server.process.kill()
    (entry,) = map(json.loads, (tmp_path / "alpha" / "annotations.jsonl").read_text().splitlines())
    del entry["time"]
    assert entry == {
        "step": 1,
        "prompt": 1,
        "completion": 2,
        "star": True,
        "comment": "guesses <b>right</b>",
    }


def test_without_the_flag_nothing_can_be_written(visit):
    opened = visit("run=alpha&step=2&tab=read")
    assert opened.page.locator("text=Notes on completions").count() == 0


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "client",
    ["", "[]", "null", "{", '{"hash": 5, "width": "x"}', '{"width": 1e400}', "[" * 100_000]
    + [json.dumps({"hash": f"tab={tab}&step=1&prompt={'9' * 400}&other=x&average=-1&amin=nan"})
       for tab in ("run", "critic", "hacking", "step", "search", "compare", "constructor")],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_every_address_is_answered(root, client):
    for values in Shows(Folder(root)).show(client):
        assert isinstance(values, dict)
