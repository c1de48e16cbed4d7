"""The inspector in a real browser: following, sharing, keyboard, screens, bad input."""

import re
import shutil

import numpy as np
import pytest
from inspector_browser import Visit, saved, shown_ids

from spo.inspector.whatif import what_if

pytest_plugins = ["inspector_plugin"]


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
        exported.page.wait_for_url(re.compile(r"p=0\.4"))
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
    opened.page.wait_for_selector(".card .t", state="attached")
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
