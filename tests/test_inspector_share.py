"""The inspector in a real browser: following, sharing, keyboard, screens, bad input."""

import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from inspector_browser import WIDTHS, Visit, first_token_is_seen, saved, shown_ids

from spo.inspector.charts import plain_charts
from spo.inspector.export import export_group
from spo.inspector.folder import Folder
from spo.inspector.history import Histories
from spo.inspector.whatif import what_if

pytest_plugins = ["inspector_plugin"]


# --- follow -----------------------------------------------------------------------------------


def test_new_steps_are_followed_only_when_asked(visit, root):
    folder = root / "alpha" / "rollouts"
    try:
        opened = visit("run=alpha&step=2&tab=read")
        shutil.copy(folder / "step-000005.parquet", folder / "step-000010.parquet")
        (folder / "step-000011.parquet").write_bytes(b"PAR1half-written")
        opened.page.wait_for_timeout(2500)
        assert "step=2" in opened.page.url
        opened.page.check("text=follow")
        opened.wait("location.hash.includes('step=10')")
        opened.wait("document.querySelector('[aria-label=Step]').value === '10'")
    finally:
        for number in (10, 11):
            (folder / f"step-{number:06d}.parquet").unlink()


# --- share ------------------------------------------------------------------------------------


def test_the_address_holds_the_view(visit):
    opened = visit(
        "run=alpha&step=3&prompt=1&completion=2&token=4&p=0.5&lam=0.1&mode=ppo&colour=value&tab=read"
    )
    assert opened.text(".detail h3") == "Completion 3 · token 5"
    opened.page.wait_for_selector(".check.verified")
    again = visit(opened.page.url.split("#")[1])
    again.page.wait_for_selector(".check.verified")
    assert again.text(".detail dl") == opened.text(".detail dl")


def test_exported_file_works_offline(visit, root, tmp_path):
    opened = visit("run=alpha&step=2&prompt=1&p=0.2&tab=read")
    opened.page.wait_for_selector(".check.verified")
    opened.page.check('[aria-label="Select completion 2"]')
    opened.page.click(".menu summary")
    with opened.page.expect_download() as download:
        opened.page.click("text=Ticked completions as HTML file")
    path = tmp_path / "export.html"
    download.value.save_as(path)
    with Visit(path.as_uri()) as exported:
        exported.page.wait_for_selector(".card .t.split")
        for width in WIDTHS:
            exported.page.set_viewport_size({"width": width, "height": 800})
            assert first_token_is_seen(exported.page)
            assert exported.ask("document.documentElement.scrollWidth") <= width
        assert exported.text(".card .text") == saved(root).rollouts.completions[5]
        exported.page.fill("#spo-entropy_percentile", "0.4")
        credit = what_if(saved(root), {"entropy_percentile": 0.4})
        length = int(saved(root).rollouts.lengths[5])
        exported.page.wait_for_url(re.compile(r"p=0\.4"))
        np.testing.assert_array_equal(shown_ids(exported), credit.segment_ids[5, :length])
        assert exported.problems == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in exported.requests)


DRAWN = """
() => [...document.querySelectorAll('.run-charts canvas')].map((canvas) => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const colours = new Set();
  for (let at = 0; at < data.length; at += 4)
    if (data[at + 3] > 200) colours.add(data.slice(at, at + 3).join());
  return colours.size;
})
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_exported_file_holds_the_charts_of_the_run(root, tmp_path, scheme):
    folder, place = Folder(root), {"run": "alpha", "step": 2, "group": 0}
    history = Histories(folder).get("alpha")
    path = tmp_path / "export.html"
    path.write_text(export_group(saved(root), 0, None, place, history=history), encoding="utf-8")
    expected = plain_charts(history)
    with Visit(path.as_uri(), scheme=scheme) as exported:
        exported.page.wait_for_selector(".run-charts canvas")
        titles = exported.ask(
            "[...document.querySelectorAll('.run-charts figcaption')].map((x) => x.textContent)"
        )
        assert titles == [chart["title"] for chart in expected]
        assert all(colours > 2 for colours in exported.ask(DRAWN))
        legend = exported.text(".run-charts figure >> nth=0 >> .u-legend")
        (reward,) = (chart for chart in expected if chart["title"] == "Reward")
        shown = reward["lines"]["reward"][reward["steps"].index(2)]
        assert f"{shown:g}" in legend  # the cursor starts at the step that the file shows
        for width in (375, 1200):
            exported.page.set_viewport_size({"width": width, "height": 800})
            assert exported.ask("document.documentElement.scrollWidth") <= width
        assert exported.problems == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in exported.requests)
    assert "Permission is hereby granted" in path.read_text(encoding="utf-8")


def test_a_picture_holds_the_text_and_the_colours(visit, root, tmp_path):
    opened = visit("run=alpha&step=2&tab=read&prompt=0&completion=1&token=0&p=0.3")
    opened.page.wait_for_selector(".check.verified")
    opened.page.click(".menu summary")
    with opened.page.expect_download() as download:
        opened.page.click("text=Completion as SVG")
    path = tmp_path / "picture.svg"
    download.value.save_as(path)
    picture = ElementTree.parse(path).getroot()
    words = [node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "".join(words[2:]) == saved(root).rollouts.completions[1].replace("\n", "")
    bars = [n for n in picture.iter("{http://www.w3.org/2000/svg}rect") if n.get("width") == "2"]
    credit = what_if(saved(root), {"entropy_percentile": 0.3})
    assert len(bars) == credit.segment_ids[1].max() + 1


# --- keyboard, reading aloud, Back --------------------------------------------------------------


def test_keyboard_walks_and_the_live_region_speaks(visit, root):
    opened = visit("run=alpha&step=2&tab=read&prompt=0&token=0")
    press = opened.page.keyboard.press
    press("ArrowRight")  # on a fresh page: nothing has the focus yet
    opened.wait("document.querySelector('.live').textContent.includes('token 2 of')")
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


def test_few_tabs_lead_to_the_first_token(visit):
    opened = visit("run=alpha&step=2&tab=read&prompt=0&token=0")
    presses = 0
    while not opened.ask("document.activeElement.matches('.t')"):
        opened.page.keyboard.press("Tab")
        presses += 1
        assert presses <= 35


def test_keys_of_other_tabs_do_not_move_the_reader(visit):
    opened = visit("run=alpha&step=2&tab=read&prompt=0&token=3")
    opened.page.click("role=tab[name=Search]")
    opened.page.wait_for_selector("text=Find segments")
    opened.page.keyboard.press("j")
    opened.page.wait_for_timeout(300)
    assert "prompt=1" not in opened.page.url


def test_back_returns_to_where_one_was(visit):
    opened = visit("run=alpha&step=2&tab=read&prompt=0&token=0")
    opened.page.keyboard.press("j")
    opened.wait("document.querySelector('.prompt summary').textContent === 'Prompt 2 of 3'")
    opened.page.click("role=tab[name=Step]")
    opened.page.wait_for_selector("text=A column head sorts")
    opened.page.go_back()
    opened.page.wait_for_selector(".card .t")
    assert opened.text(".prompt summary") == "Prompt 2 of 3"
    opened.page.go_back()
    opened.wait("document.querySelector('.prompt summary').textContent === 'Prompt 1 of 3'")


def test_the_server_stays_light(server):
    """Importing the app brings in neither torch nor transformers nor datasets."""
    assert server.first_line.endswith("heavy modules: set()\n")


# --- bad input --------------------------------------------------------------------------------


def test_trl_files_open_in_a_reduced_view(visit):
    opened = visit("run=trl&tab=read&prompt=0")
    assert "this file lacks token ids and text offsets, entropies" in opened.text(".notes")
    assert opened.ask(
        "[...document.querySelectorAll('.card .text')].map((t) => t.textContent)"
    ) == [
        "é\n",
        "",
    ]
    assert "advantage +0.7" in opened.text(".card header")
    assert "unscorable" in opened.text(".card >> nth=1")
    assert not opened.page.is_visible(".controls")


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (2, "step-2.parquet has schema version 99; this code reads versions 1 to 2."),
        (3, "step-3.parquet is damaged or no Parquet file"),
        (4, "step-4.parquet holds no rollouts: it has no prompt and completion columns."),
    ],
)
def test_a_step_that_cannot_be_shown_says_why(server, step, sentence):
    with Visit(server.address, f"run=odd&step={step}&tab=read") as opened:
        opened.page.wait_for_selector(".note")
        assert opened.text(".note").startswith(sentence)
        opened.page.click('[aria-label="Previous step"]')
        opened.page.wait_for_selector(".note, .card")
        opened.page.click("role=tab[name=Run]")  # one bad step harms no other tab
        opened.page.wait_for_selector("text=What stands out")
        assert opened.problems == []


def test_empty_completions_are_shown_as_such(visit):
    opened = visit("run=odd&step=1&tab=read&prompt=0")
    assert "Empty completion." in opened.text(".card >> nth=0")
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("l")
    opened.wait("document.querySelectorAll('.card')[1].matches('.current')")


def test_conversations_do_not_open_on_a_failure(visit):
    opened = visit("run=chat&tab=read&prompt=0")
    assert "HTTP" not in opened.text(".notes")
    assert opened.page.locator(".card").count() == 2
