"""The inspector in a real browser: what a person can find, read, understand, ask and share.

One server and one Chromium for the file; each test opens a page of its own.
"""

import json
import re

import numpy as np
from inspector_browser import CARD, STEPS, browser_context, saved, shown_ids

from spo.inspector.whatif import what_if

pytest_plugins = ["inspector_plugin"]


# --- find -------------------------------------------------------------------------------------


def test_find_sorts_filters_and_opens(visit, root):
    opened = visit()
    opened.page.select_option('[aria-label="Sort by"]', "length")
    lengths = saved(root).rollouts.lengths
    opened.wait(f"document.querySelector('.list .meta').textContent.startsWith('{lengths.min()} ')")
    opened.page.click("text=Filter by numbers")
    opened.page.fill('[aria-label="tokens min"]', str(lengths.max()))
    expected = int((lengths == lengths.max()).sum())
    opened.wait(f"document.querySelectorAll('.list li').length === {expected}")
    opened.page.fill('[aria-label="Regular expression in prompt or completion"]', "(")
    opened.page.wait_for_selector("text=The pattern is not valid")
    opened.page.fill('[aria-label="Regular expression in prompt or completion"]', "")
    opened.wait(f"document.querySelectorAll('.list li').length === {expected}")
    row = int(np.flatnonzero(lengths == lengths.max())[0])
    opened.page.click(".list button")
    opened.wait("document.querySelector('.card.current')")
    opened.wait(f"location.hash.includes('prompt={row // 4}') || {row // 4} === 0")
    assert opened.text(".prompt summary") == f"Prompt {row // 4 + 1} of 3"


def test_reverse_search_over_the_run_counts_by_step(visit, root):
    opened = visit("run=alpha&step=2&tab=search")
    opened.page.fill('[aria-label="advantage max"]', "-1")
    opened.page.click("text=Find segments")
    opened.page.wait_for_selector(".matches li")
    opened.wait("!document.querySelector('.search-view .hint').textContent.includes('searching')")
    counts = {}
    for step in STEPS:
        credit = saved(root, step).credit
        firsts = np.diff(credit.segment_ids, axis=1, prepend=-2) != 0
        low = credit.token_advantages <= -1
        counts[step] = int((firsts & (credit.segment_ids >= 0) & low).sum())
    assert opened.text(".search-view .hint").startswith(
        f"{sum(counts.values())} segments in 4 steps"
    )
    titles = opened.ask("[...document.querySelectorAll('.bars title')].map((t) => t.textContent)")
    assert titles == [f"step {step}: {count} segments" for step, count in counts.items()]
    opened.page.click(".matches button")
    opened.page.wait_for_selector(".detail .token-text")


# --- read -------------------------------------------------------------------------------------


def test_text_and_numbers_are_those_of_the_file(visit, root):
    opened = visit("run=alpha&step=2&prompt=1")
    step = saved(root)
    texts = opened.ask(f"[...{CARD}].map((c) => c.querySelector('.text').textContent)")
    assert texts == step.rollouts.completions[4:8]
    starts = opened.ask(f"[...{CARD}].map((c) => c.querySelectorAll('.t.cut').length + 1)")
    assert starts == (step.credit.segment_ids[4:8].max(1) + 1).tolist()
    boundary = np.flatnonzero(np.diff(step.credit.segment_ids[4]) > 0)[0] + 1
    opened.page.hover(f".card >> nth=0 >> .t >> nth={boundary}")
    tip = opened.text(".tooltip")
    entropy = step.rollouts.token_entropies[4, boundary]
    assert f"H = {float(f'{entropy:.3g}'):g}" in tip
    assert "≥ cut" in tip
    assert "truncated" in visit("run=alpha&step=2&prompt=0").text(".columns")


def test_colours_follow_the_measure(visit, root):
    opened = visit("run=alpha&step=2&colour=entropy")
    entropies = saved(root).rollouts.token_entropies[0]
    classes = opened.ask(f"[...{CARD}[0].querySelectorAll('.t')].map((t) => t.className)")
    shades = [int(re.search(r"\bc(\d+)", name)[1]) for name in classes]
    by_entropy = np.array(shades)[np.argsort(entropies[: len(shades)])]
    assert (np.diff(by_entropy) >= 0).all()
    assert by_entropy[0] == 7
    assert by_entropy[-1] > 10
    for key in ("logprob", "value", "gap"):
        opened.page.click(f".colours button >> text={key[:3]}")
        opened.wait(f"location.hash.includes('colour={key}')")


def test_a_run_without_critic_shows_group_advantages(visit):
    opened = visit("run=nocritic&step=1")
    assert "verified" in opened.text(".badge")
    assert opened.ask("document.querySelector('.colours button:nth-child(3)').disabled")
    opened.page.click("[role=tab] >> text=Step")
    assert "no critic was trained" in opened.text(".step-view")


def test_the_common_beginning_folds_and_forks_are_marked(visit):
    opened = visit("run=forks")
    assert opened.text(".fold") == "⋯ 10 tokens that all completions begin with"
    first = opened.page.locator(".card >> nth=0 >> .t")
    assert [first.nth(at).is_visible() for at in (0, 9, 10)] == [False, False, True]
    forked = "[...c.querySelectorAll('.t')].findIndex((t) => t.matches('.fork'))"
    assert opened.ask(f"[...{CARD}].map((c) => {forked})") == [12, 12, 10]
    opened.page.click(".fold")
    assert first.nth(0).is_visible()


# --- understand -------------------------------------------------------------------------------


def test_strips_panel_and_waterfall_explain_a_token(visit, root):
    opened = visit("run=alpha&step=2")
    strip = opened.page.locator(".card >> nth=0 >> .strip svg >> nth=0")
    box = strip.bounding_box()
    strip.click(position={"x": box["width"] / 2, "y": 5})
    length = int(saved(root).rollouts.lengths[0])
    opened.wait(f"location.hash.includes('token={length // 2}')")
    opened.page.wait_for_selector(".waterfall")
    rows = opened.page.locator(".segments tbody tr").all()
    cells = [row.locator("td").all_text_contents()[2:] for row in rows]
    numbers = np.array([[float(x.replace("−", "-")) for x in row] for row in cells])
    np.testing.assert_allclose(numbers[:, 0] + numbers[:, 1], numbers[:, 2], atol=0.02)
    assert len(rows) == saved(root).credit.segment_ids[0].max() + 1


def test_calibration_bin_lists_its_segments(visit):
    opened = visit("run=alpha&step=2&tab=step")
    label = opened.page.get_attribute(".bin >> nth=2", "aria-label")
    opened.page.click(".bin >> nth=2")
    count = int(re.search(r"(\d+) segments", label)[1])
    opened.page.wait_for_selector(".matches li")
    assert opened.page.locator(".matches li").count() == count


# --- what if ----------------------------------------------------------------------------------


def test_sliders_move_credit_and_python_agrees(visit, root):
    opened = visit("run=alpha&step=2")
    opened.wait("document.querySelector('.status').textContent === 'as trained'")
    opened.page.fill("#spo-entropy_percentile", "0.3")
    opened.page.fill("#spo-lam", "0.4")
    opened.page.wait_for_selector(".check.verified")
    step = saved(root)
    credit = what_if(step, {"entropy_percentile": 0.3, "lam": 0.4})
    length = int(step.rollouts.lengths[0])
    np.testing.assert_array_equal(shown_ids(opened), credit.segment_ids[0, :length])
    mask = step.rollouts.completion_mask[:4]
    flips = (step.credit.token_advantages[:4] * credit.token_advantages[:4] < 0) & mask
    assert f"{flips.sum()} sign flips" in opened.text(".status")
    assert opened.page.locator(".t.flip").count() == flips.sum()
    assert "p=0.3" in opened.page.url
    opened.page.click("text=Reset to training")
    opened.wait("document.querySelector('.status').textContent === 'as trained'")
    assert opened.page.locator(".t.split").count() == 0


def test_three_modes_side_by_side(visit, root):
    opened = visit("run=alpha&step=2&tab=modes")
    opened.page.wait_for_selector("[data-mode=ppo] .t")
    length = int(saved(root).rollouts.lengths[0])
    counts = [opened.text(f"[data-mode={mode}] .count:last-child") for mode in ("grpo", "ppo")]
    assert counts == ["1 segment", f"{length} segments"]


def test_slider_input_is_never_lost(visit):
    opened = visit("run=alpha&step=2")
    opened.wait("document.querySelector('.status').textContent === 'as trained'")
    opened.ask(
        """() => { const slider = document.querySelector('[aria-label="λ"]');
        for (let i = 0; i <= 100; i++) {
          slider.value = i / 100; slider.dispatchEvent(new Event('input')); } slider.value = 0.25;
        slider.dispatchEvent(new Event('input')); }"""
    )
    opened.page.wait_for_selector(".check.verified")
    assert "lam=0.25" in opened.page.url


def test_a_step_too_large_for_the_browser_is_computed_by_python(visit, root):
    """The server says so in its summary; here the answer is changed on its way."""

    def shrink(route):
        result = json.loads(route.fetch().json())
        if "in_browser" in result:
            result["in_browser"] = False
        route.fulfill(json=json.dumps(result))

    browser_context().route(re.compile("component_server"), shrink)
    try:
        opened = visit("run=alpha&step=2&p=0.3")
        opened.page.wait_for_selector("text=computed by Python")
        credit = what_if(saved(root), {"entropy_percentile": 0.3})
        length = int(saved(root).rollouts.lengths[0])
        np.testing.assert_array_equal(shown_ids(opened), credit.segment_ids[0, :length])
    finally:
        browser_context().unroute(re.compile("component_server"))
