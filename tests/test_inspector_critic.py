"""What the critic read and said, in a real browser: sources, references, tools, saved columns."""

import re

import numpy as np
import pytest
from inspector_fixtures import REFERENCE, SOURCES, known_rollouts

from spo.inspector.charts import Look
from spo.inspector.critic_charts import critic_charts
from spo.inspector.folder import Folder
from spo.inspector.history import SOURCE_EV, Histories
from spo.inspector.reading import read_step

pytest_plugins = ["inspector_plugin"]
READ = "run=known&step=2&tab=read&prompt={}&completion={}&token={}"


def facts(opened) -> dict[str, str]:
    """The explanation of the current token, as it stands on the page."""
    names = opened.page.locator(".detail dl").first.locator("dt").all_inner_texts()
    values = opened.page.locator(".detail dl").first.locator("dd").all_inner_texts()
    return dict(zip(names, values, strict=True))


def as_number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_a_token_says_which_source_said_what(visit, root):
    opened = visit(READ.format(0, 1, 4))
    opened.page.wait_for_selector(".detail dl:visible")
    rollouts = read_step(root / "known" / "rollouts" / "step-000002.parquet").rollouts
    said = facts(opened)
    for name in SOURCES:
        expected = rollouts.values_by_source[name][1, 4]
        assert as_number(said[f"· {name}"]) == pytest.approx(expected, rel=0.01)
    total = sum(as_number(said[f"· {name}"]) for name in SOURCES)
    assert as_number(said["value V"]) == pytest.approx(total, abs=0.01)
    assert as_number(said["value V"]) == pytest.approx(known_rollouts(2).token_values[1, 4], 0.01)


def test_a_critic_of_one_source_says_its_value_once(visit):
    opened = visit("run=alpha&step=2&tab=read&prompt=0&completion=0&token=3")
    opened.page.wait_for_selector(".detail dl:visible")
    assert not [name for name in facts(opened) if name.startswith("·")]


def marked(opened, kind: str) -> list[str]:
    return opened.page.locator(f".detail .reference mark.{kind}:visible").all_inner_texts()


def test_the_reference_stands_beside_the_completion_and_follows_the_token(visit):
    opened = visit(READ.format(0, 0, 7))  # behind "3 + 4 = 7\\n"
    panel = opened.page.locator(".detail .reference")
    panel.wait_for(state="visible")
    assert panel.text_content() == REFERENCE
    assert opened.page.locator(".detail h3", has_text="Reference: column solution").is_visible()
    assert marked(opened, "met") == ["3", "4", "7"]
    assert marked(opened, "later") == ["7", "5", "12"]
    opened.ask("spo.go({token: 13})")
    opened.wait("document.querySelectorAll('.detail mark.met').length === 6")
    assert marked(opened, "later") == []
    opened.ask("spo.go({completion: 1, token: 10})")  # wrong from "8" on, and right again at "5"
    opened.wait("document.querySelector('.detail h3').textContent.includes('Completion 2')")
    assert marked(opened, "met") == ["3", "4", "5"]


def test_items_in_common_are_marked_in_the_completion(visit):
    opened = visit(READ.format(0, 0, 6))
    opened.page.locator(".detail .reference").wait_for(state="visible")
    found = opened.ask("[...CSS.highlights.get('spo-met')].map((range) => range.toString().trim())")
    assert found == ["3", "4", "7", "7", "5", "12"]


@pytest.mark.parametrize(
    ("prompt", "completion", "words"),
    [(1, 0, "Reference: a right sibling of this step"), (1, 1, None)],
)
def test_where_a_reference_came_from_is_said(visit, prompt, completion, words):
    opened = visit(READ.format(prompt, completion, 3))
    opened.page.wait_for_selector(".detail dl:visible")
    heads = opened.page.locator(".detail h3").all_inner_texts()
    assert [head for head in heads if head.startswith("Reference")] == ([words] if words else [])


def test_tool_tokens_look_otherwise_and_say_so(visit):
    opened = visit(READ.format(0, 0, 7))
    opened.page.wait_for_selector(".detail dl:visible")
    tools = opened.page.locator(".card >> nth=0").locator(".t.tool").all_inner_texts()
    assert tools == ["\n", "7", " +"]
    picture = opened.ask("getComputedStyle(document.querySelector('.t.tool')).backgroundImage")
    assert "repeating-linear-gradient" in picture
    assert facts(opened)["from"] == "a tool or the environment: read, never trained on"
    assert as_number(facts(opened)["advantage"]) == 0
    assert opened.page.locator(".badge.verified").is_visible()  # recomputed with the tools masked


def test_only_the_saved_columns_stand_with_the_prompt(visit):
    opened = visit(READ.format(0, 0, 3))
    text = opened.page.locator(".prompt").inner_text()
    assert re.search(r"answer\s+12", text)
    assert "solution" in text
    assert "unused" not in text


def test_the_critic_tab_shows_what_each_source_explains(visit, root):
    history = Histories(Folder(root)).get("known")
    assert history.value_sources == list(SOURCES)
    for name in SOURCES:
        series = history.series(SOURCE_EV + name)
        for step in (1, 2, 3, 4):
            saved = read_step(root / "known" / "rollouts" / f"step-{step:06d}.parquet")
            mask = saved.rollouts.loss_mask(False)
            returns = saved.credit.token_returns[mask].astype(float)
            values = saved.rollouts.values_by_source[name][mask]
            expected = 1 - np.var(returns - values) / np.var(returns)
            assert series.values[step - 1] == pytest.approx(expected, rel=0.01, abs=0.01)
    spec = critic_charts(history, history.lines[-1], Look(1280, dark=False), 5)
    drawn = {row["line"] for row in spec["concat"][0]["data"]["values"]}
    assert drawn >= {f"{name} alone" for name in SOURCES} | {"V at every token"}
    opened = visit("run=known&tab=critic")
    opened.page.locator("#spo-tab-critic .spo-chart canvas").wait_for(state="visible")


def test_evaluations_of_two_steps_are_compared_prompt_by_prompt(visit):
    """Wrong at step 1, right at step 4: what both say is plain, the rest struck or underlined."""
    opened = visit("run=known&tab=compare")
    opened.page.click("text=Compare the evaluations of this run")
    diff = opened.page.locator(".diff:visible")
    diff.locator("del", has_text="13").wait_for(state="visible")
    assert "8" in "".join(diff.locator("del").all_inner_texts())
    assert "12" in "".join(diff.locator("ins").all_inner_texts())
    assert opened.page.get_by_label("Before: step").input_value() == "step 1"
    assert opened.page.get_by_label("After: step").input_value() == "step 4"
    opened.page.get_by_label("Before: step").click()
    opened.page.get_by_role("option", name="step 4").click()
    opened.page.wait_for_selector(".diff:visible:not(:has(del))")
