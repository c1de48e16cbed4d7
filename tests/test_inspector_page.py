"""The inspector's reader in a real browser: what a person can read, understand and ask.

One server and one Chromium for the file; each test opens a page of its own.
"""

import json
import re

import numpy as np
import pytest
from inspector_browser import (
    CARD,
    REPOSITORY,
    WIDTHS,
    browser_context,
    first_token_is_seen,
    saved,
    serve,
    shown_ids,
)

from spo.inspector.views import best_place
from spo.inspector.whatif import what_if

pytest_plugins = ["inspector_plugin"]

READ = "run=alpha&step=2&tab=read&prompt=0"


# --- see --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_token_is_seen_at_every_width(visit, width):
    opened = visit(READ, width=width, height=800)
    assert first_token_is_seen(opened.page)
    assert opened.ask("document.documentElement.scrollWidth") <= width


def test_the_app_from_the_repository_shows_it_as_well(root):
    server = serve(root, cwd=REPOSITORY)
    page = browser_context().new_page()
    page.goto(f"{server.address}#{READ}")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_selector(".card .t")
        assert first_token_is_seen(page)
    page.close()
    server.process.kill()


def test_dark_mode_darkens_the_page(visit):
    opened = visit(READ, scheme="dark")
    brightness = (
        "getComputedStyle(document.querySelector('.spo')).backgroundColor.match(/\\d+/g)[0]"
    )
    assert int(opened.ask(brightness)) < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_stay_readable_under_the_pointer(visit, scheme):
    opened = visit("run=alpha&step=2&tab=search", scheme=scheme)
    button = opened.page.locator("button.primary")
    button.hover()
    opened.page.wait_for_timeout(300)  # Gradio fades between the colours
    assert contrast(button) >= 4.5
    opened = visit(READ, scheme=scheme)
    pressed = opened.page.locator(".colours [aria-pressed=true]")
    pressed.hover()
    assert contrast(pressed) >= 4.5


def contrast(locator) -> float:
    """WCAG's ratio of a text and the colour behind it."""
    colours = locator.evaluate(
        "(e) => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    )
    levels = []
    for colour in colours:
        channels = np.array([float(x) for x in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(
            channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        levels.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(levels) + 0.05) / (min(levels) + 0.05)


# --- read -------------------------------------------------------------------------------------


def test_the_reader_opens_on_the_largest_credit_of_the_widest_rewards(visit, root):
    opened = visit("run=alpha&step=2&tab=read")
    best = best_place(saved(root))
    opened.page.wait_for_selector(".detail .token-text")
    title = f"Completion {best['completion'] + 1} · token {best['token'] + 1}"
    assert opened.text(".detail h3") == title
    assert opened.text(".prompt summary") == f"Prompt {best['prompt'] + 1} of 3"
    rewards = saved(root).rollouts.completion_rewards.reshape(-1, 4)
    assert np.ptp(rewards[best["prompt"]]) == np.ptp(rewards, axis=1).max()


def test_text_and_numbers_are_those_of_the_file(visit, root):
    opened = visit("run=alpha&step=2&prompt=1&tab=read")
    step = saved(root)
    texts = opened.ask(f"[...{CARD}].map((c) => c.querySelector('.text').textContent)")
    assert texts == step.rollouts.completions[4:8]
    starts = opened.ask(f"[...{CARD}].map((c) => c.querySelectorAll('.t.cut').length + 1)")
    assert starts == (step.credit.segment_ids[4:8].max(1) + 1).tolist()
    boundary = np.flatnonzero(np.diff(step.credit.segment_ids[4]) > 0)[0] + 1
    token = f".card >> nth=0 >> .t >> nth={boundary}"
    opened.page.hover(token)
    tip = opened.page.get_attribute(token, "title")
    entropy = step.rollouts.token_entropies[4, boundary]
    assert f"H = {float(f'{entropy:.3g}'):g}" in tip
    assert "≥ cut" in tip
    assert "truncated" in visit(READ).text(".columns")


def test_colours_follow_the_measure_and_the_legend_says_where_they_end(visit, root):
    opened = visit(f"{READ}&colour=entropy")
    entropies = saved(root).rollouts.token_entropies[0]
    classes = opened.ask(f"[...{CARD}[0].querySelectorAll('.t')].map((t) => t.className)")
    shades = [int(re.search(r"\bc(\d+)", name)[1]) for name in classes]
    by_entropy = np.array(shades)[np.argsort(entropies[: len(shades)])]
    assert (np.diff(by_entropy) >= 0).all()
    assert by_entropy[-1] > 10
    assert "95th percentile of the step" in opened.text(".legend")
    for key in ("logprob", "value", "gap"):
        opened.page.click(f".colours button >> text={key[:3]}")
        opened.wait(f"location.hash.includes('colour={key}')")


def test_no_completion_with_credit_is_white(visit, root):
    step = saved(root)
    opened = visit(READ)
    for prompt in range(3):
        opened.page.wait_for_selector(f"text=Prompt {prompt + 1} of 3")
        white = opened.ask(
            f"[...{CARD}].map((c) => [...c.querySelectorAll('.t')].every((t) => t.matches('.c7')))"
        )
        sizes = np.abs(step.credit.token_advantages[4 * prompt : 4 * prompt + 4]).max(1)
        assert (
            white
            == (sizes < 0.02 * np.percentile(np.abs(step.credit.token_advantages), 95)).tolist()
        )
        opened.page.keyboard.press("j")


def test_a_name_from_the_address_is_no_property(visit):
    for name in ("constructor", "__proto__"):
        opened = visit(f"{READ}&colour={name}&mode={name}")
        assert opened.text(".legend").startswith("Advantage")


def test_absurd_numbers_in_the_address_open_the_nearest(visit):
    opened = visit(f"run=alpha&step={'9' * 400}&tab=read&prompt={'9' * 400}&token=-5&p=1e400")
    assert opened.ask("document.querySelector('[aria-label=Step]').value") == "5"


def test_a_run_without_critic_shows_group_advantages(visit):
    opened = visit("run=nocritic&step=1&tab=read")
    assert "verified" in opened.text(".badge")
    assert opened.ask("document.querySelector('.colours button:nth-child(3)').disabled")


def test_the_common_beginning_folds_and_forks_are_marked(visit):
    opened = visit("run=forks&tab=read&prompt=0")
    assert opened.text(".fold").strip() == "⋯ 10 tokens that all completions begin with"
    first = opened.page.locator(".card >> nth=0 >> .t")
    assert [first.nth(at).is_visible() for at in (0, 9, 10)] == [False, False, True]
    forked = "[...c.querySelectorAll('.t')].findIndex((t) => t.matches('.fork'))"
    assert opened.ask(f"[...{CARD}].map((c) => {forked})") == [12, 12, 10]
    opened.page.click(".fold")
    assert first.nth(0).is_visible()


def test_chat_prompts_are_turns(visit):
    opened = visit("run=chat&tab=read&prompt=0")
    assert opened.ask("[...document.querySelectorAll('.turn')].map((t) => t.textContent)") == [
        "systemBe brief.",
        "userWhat is 2 + 2?",
    ]
    assert opened.text(".card .text") == "4"
    opened.page.click("text=Rendered: Markdown and LaTeX")
    opened.page.wait_for_selector(".message >> text=What is 2 + 2?")


def test_a_character_split_over_tokens_is_no_hole(visit, root):
    opened = visit("run=split&tab=read&prompt=0&completion=0&token=1")
    parts = opened.ask(
        f"[...{CARD}[0].querySelectorAll('.t')].map((t) => [t.textContent, t.dataset.part])"
    )
    assert parts == [["a", None], ["", "1/3"], ["", "2/3"], ["👍", None]]
    assert opened.text(".token-text") == "part 1 of 3 of “👍”"
    shown = opened.ask(f"getComputedStyle({CARD}[0].querySelectorAll('.t')[1], '::before').content")
    assert shown == '"1/3"'


def test_find_marks_what_stands_in_the_completions(visit, root):
    opened = visit(READ)
    opened.page.fill('[aria-label="Find in these completions"]', "THE")
    counts = [text.lower().count("the") for text in saved(root).rollouts.completions[:4]]
    opened.wait(f"document.querySelector('.hits').textContent === '{sum(counts)} found'")


# --- understand -------------------------------------------------------------------------------


def test_strips_panel_and_waterfall_explain_a_token(visit, root):
    opened = visit(READ)
    strip = opened.page.locator(".card >> nth=0 >> .strip svg >> nth=0")
    box = strip.bounding_box()
    strip.click(position={"x": box["width"] / 2, "y": 5})
    length = int(saved(root).rollouts.lengths[0])
    opened.wait(f"location.hash.includes('token={length // 2}')")
    opened.page.wait_for_selector(".waterfall")
    rows = opened.page.locator(".segments tbody tr").all()
    cells = [row.locator("td").all_text_contents()[2:] for row in rows]
    numbers = np.array([[float(x.replace("−", "-")) for x in row] for row in cells])
    reward, ahead, delta, carried, raw, used = numbers.T
    np.testing.assert_allclose(reward + ahead, delta, atol=0.02)
    np.testing.assert_allclose(delta + carried, raw, atol=0.06)
    saved_credit = saved(root).credit
    firsts = np.flatnonzero(np.diff(saved_credit.segment_ids[0, :length], prepend=-1))
    np.testing.assert_allclose(used, saved_credit.token_advantages[0, firsts], rtol=0.06)
    units = opened.page.locator(".segments thead tr >> nth=0 >> th").all_text_contents()
    assert units == ["raw, in units of reward", "normal."]


# --- what if ----------------------------------------------------------------------------------


def unfold(opened):
    opened.wait("document.querySelector('.status').textContent === 'as trained'")
    opened.page.click(".controls summary")


def test_sliders_move_credit_and_python_agrees(visit, root):
    opened = visit(READ)
    unfold(opened)
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
    opened.wait("location.hash.includes('p=0.3')")
    opened.page.click("text=Reset to training")
    opened.wait("document.querySelector('.status').textContent === 'as trained'")
    assert opened.page.locator(".t.split").count() == 0


def test_slider_input_is_never_lost(visit):
    opened = visit(READ)
    unfold(opened)
    opened.ask(
        """() => { const slider = document.querySelector('[aria-label="λ"]');
        for (let i = 0; i <= 100; i++) {
          slider.value = i / 100; slider.dispatchEvent(new Event('input')); } slider.value = 0.25;
        slider.dispatchEvent(new Event('input')); }"""
    )
    opened.page.wait_for_selector(".check.verified")
    opened.wait("location.hash.includes('lam=0.25')")


def test_a_step_too_large_for_the_browser_is_computed_by_python(visit, root):
    """The server says so in its summary; here the answer is changed on its way."""

    def shrink(route):
        result = json.loads(route.fetch().json())
        if "in_browser" in result:
            result["in_browser"] = False
        route.fulfill(json=json.dumps(result))

    browser_context().route(re.compile("component_server"), shrink)
    try:
        opened = visit(f"{READ}&p=0.3")
        opened.page.wait_for_selector("text=computed by Python")
        credit = what_if(saved(root), {"entropy_percentile": 0.3})
        length = int(saved(root).rollouts.lengths[0])
        np.testing.assert_array_equal(shown_ids(opened), credit.segment_ids[0, :length])
    finally:
        browser_context().unroute(re.compile("component_server"))
