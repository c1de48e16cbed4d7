"""The inspector in a real browser: what a person can find, read, understand, ask and share.

One server and one Chromium for the file; each test opens a page of its own.
"""

import re
import shutil

import numpy as np
import pytest
from inspector_browser import Visit, shared_server

from spo.inspector.reading import read_step
from spo.inspector.whatif import what_if

STEPS = (1, 2, 3, 5)


@pytest.fixture(scope="module")
def root():
    return shared_server()[0]


@pytest.fixture(scope="module")
def server():
    return shared_server()[1]


@pytest.fixture
def visit(server):
    """Opens the page at a fragment; at the end nothing may have gone wrong in the browser."""
    visits = []

    def open_page(fragment="run=alpha&step=2", **size):
        opened = Visit(server.address, fragment, **size).__enter__()
        opened.page.wait_for_selector(".card .t", state="attached")
        visits.append(opened)
        return opened

    yield open_page
    for opened in visits:
        opened.page.close()
        assert opened.problems == []
        assert [url for url in opened.requests if not is_local(url, server.address)] == []


def is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def saved(root, step=2):
    return read_step(root / "alpha" / "rollouts" / f"step-{step:06d}.parquet")


CARD = "document.querySelectorAll('.card')"


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


def shown_ids(opened, card=0):
    """Segment ids as drawn: a cut or split token starts one."""
    names = opened.ask(f"[...{CARD}[{card}].querySelectorAll('.t')].map((t) => t.className)")
    return np.cumsum([bool(re.search(r"\b(cut|split)\b", name)) for name in names])


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


# --- follow -----------------------------------------------------------------------------------


def test_new_steps_appear_and_are_followed_only_when_asked(visit, root):
    folder = root / "alpha" / "rollouts"
    try:
        opened = visit("run=alpha&step=2")
        steps = "document.querySelectorAll('[aria-label=Step] option').length"
        (folder / "step-000011.parquet").write_bytes(b"PAR1half-written")
        shutil.copy(folder / "step-000005.parquet", folder / "step-000010.parquet")
        opened.wait(f"{steps} === 5")
        opened.page.wait_for_selector("text=step-000011.parquet (half-written or damaged)")
        assert "step=2" in opened.page.url
        opened.page.check("#spo-follow")
        opened.wait("location.hash.includes('step=10')")
    finally:
        for number in (10, 11):
            (folder / f"step-{number:06d}.parquet").unlink()


def test_a_prompt_is_compared_across_the_training(visit):
    opened = visit("run=alpha&step=5&tab=training")
    opened.page.wait_for_selector(".diff span")
    assert opened.text(".history .hint") == "4 saved steps hold this prompt."
    assert opened.page.locator(".curve-grid figure").count() == 2
    after = opened.ask(
        "[...document.querySelectorAll('.diff :is(span, ins)')].map((t) => t.textContent).join('')"
    )
    assert after == opened.ask("document.querySelector('.card .text').textContent")
    opened.page.hover(".diff span >> nth=0")
    assert re.search(r"entropy .* → .*, advantage .* → ", opened.text(".history [aria-live]"))


# --- share ------------------------------------------------------------------------------------


def test_the_address_holds_the_view(visit):
    opened = visit(
        "run=alpha&step=3&prompt=1&completion=2&token=4&p=0.5&lam=0.1&mode=ppo&colour=value"
    )
    assert opened.text(".detail h3") == "Completion 3 · token 5"
    opened.page.wait_for_selector(".check.verified")
    again = visit(opened.page.url.split("#")[1])
    again.page.wait_for_selector(".check.verified")
    assert again.text(".detail dl") == opened.text(".detail dl")


def test_exported_file_works_offline(visit, root, tmp_path):
    opened = visit("run=alpha&step=2&prompt=1&p=0.2")
    opened.page.wait_for_selector(".check.verified")
    opened.page.check('[aria-label="Select completion 2"]')
    opened.page.click(".menu summary")
    with opened.page.expect_download() as download:
        opened.page.click("text=Ticked completions as HTML file")
    path = tmp_path / "export.html"
    download.value.save_as(path)
    with Visit(path.as_uri()) as exported:
        exported.page.wait_for_selector(".card .t.split")
        assert exported.text(".card .text") == saved(root).rollouts.completions[5]
        exported.page.fill("#spo-entropy_percentile", "0.4")
        credit = what_if(saved(root), {"entropy_percentile": 0.4})
        length = int(saved(root).rollouts.lengths[5])
        exported.wait("location.hash.includes('p=0.4')")
        np.testing.assert_array_equal(shown_ids(exported), credit.segment_ids[5, :length])
        assert exported.problems == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in exported.requests)


def test_pictures_hold_the_text(visit, tmp_path):
    opened = visit("run=alpha&step=2")
    for kind, start_bytes in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        opened.page.click(".menu summary")
        with opened.page.expect_download() as download:
            opened.page.click(f"text=Completion as {kind}")
        path = tmp_path / f"picture.{kind}"
        download.value.save_as(path)
        assert path.read_bytes().startswith(start_bytes)
        assert path.stat().st_size > 2000


# --- keyboard, reading aloud, small and dark ----------------------------------------------------


def test_keyboard_walks_and_the_live_region_speaks(visit, root):
    opened = visit("run=alpha&step=2&token=0")
    press = opened.page.keyboard.press
    opened.page.focus(".card .t >> nth=0")
    press("ArrowRight")
    assert "token 2 of" in opened.text(".live")
    assert opened.ask("document.activeElement.matches('.t:focus-visible')")
    press("n")
    boundary = np.flatnonzero(np.diff(saved(root).credit.segment_ids[0]) > 0)[0] + 1
    assert f"token {boundary + 1} of" in opened.text(".live")
    press("l")
    assert opened.text(".detail h3").startswith("Completion 2")
    press("j")
    opened.wait("document.querySelector('.prompt summary').textContent === 'Prompt 2 of 3'")
    press("?")
    assert opened.page.is_visible("dialog.help")
    press("Escape")
    assert not opened.page.is_visible("dialog.help")


def test_small_and_dark_screens(visit):
    opened = visit("run=alpha&step=2", width=375, height=700)
    assert opened.ask("document.documentElement.scrollWidth") <= 375
    opened.page.emulate_media(color_scheme="dark")
    opened.page.reload()
    opened.page.wait_for_selector(".card .t")
    brightness = (
        "getComputedStyle(document.querySelector('.app')).backgroundColor.match(/\\d+/g)[0]"
    )
    assert int(opened.ask(brightness)) < 60


def test_the_server_stays_light(server):
    """Importing the app brings in neither torch nor transformers nor datasets."""
    assert server.first_line.endswith("heavy modules: set()\n")


# --- bad input --------------------------------------------------------------------------------


def test_trl_files_open_in_a_reduced_view(visit):
    opened = visit("run=trl")
    assert "this file lacks token ids and text offsets, entropies" in opened.text(".notes")
    assert opened.ask("[...document.querySelectorAll('.text')].map((t) => t.textContent)") == [
        "é\n",
        "",
    ]
    assert "advantage +0.7" in opened.text(".card header")
    assert "unscorable" in opened.text(".card >> nth=1")
    assert not opened.page.is_visible(".controls")


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (2, "step-2.parquet has schema version 99; this code reads version 1."),
        (3, "step-3.parquet is damaged or no Parquet file"),
        (4, "step-4.parquet holds no rollouts: it has no prompt and completion columns."),
    ],
)
def test_a_step_that_cannot_be_shown_says_why(server, step, sentence):
    with Visit(server.address, f"run=odd&step={step}") as opened:
        opened.page.wait_for_selector(".note")
        assert opened.text(".note").startswith(sentence)
        opened.page.click('[aria-label="Previous step"]')
        opened.page.wait_for_selector(".note, .card")
        assert opened.problems == []


def test_empty_completions_are_shown_as_such(visit):
    opened = visit("run=odd&step=1")
    assert "Empty completion." in opened.text(".card >> nth=0")
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("l")
    opened.wait("document.querySelectorAll('.card')[1].matches('.current')")


def test_a_refusal_arrives_as_a_sentence(visit):
    """Gradio turns exceptions into `undefined`; the envelope does not."""
    opened = visit("run=alpha&step=2&prompt=1")
    opened.ask("location.hash = '#run=alpha&step=77'")
    opened.page.wait_for_selector("text=Run alpha has no readable step 77.")
