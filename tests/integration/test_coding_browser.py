"""The coding page in a real Chromium: by keyboard, through a killed server, two coders, every level, accessible."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gold_project import CODEBOOK, make_project, page_in_a_process, page_in_a_thread, plan_words, stored

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or set CHROMIUM")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WAIT_MS = 30_000  # a busy machine


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def window(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`window(url, coder)` is a tab of its own in which that coder has begun; errors in the page fail the test."""
    contexts, faults = [], []

    def open_(url: str, coder: str = "", **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1000, "height": 900}} | options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(WAIT_MS)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(url)
        tab.wait_for_selector("#door:not([hidden])")
        if coder:
            tab.fill("#name", coder)
            tab.keyboard.press("Enter")
            tab.wait_for_selector("#coding:not([hidden])")
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def project(consilience: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    def make(codebook: str = CODEBOOK, n: int = 12, double: float = 0.0) -> Path:
        folder = make_project(tmp_path / "project", codebook=codebook)
        assert consilience(*plan_words(folder, "--n", n, "--double", double)).code == 0
        return folder

    return make


def until(tab: Any, expression: str) -> None:
    """Waits until a JavaScript expression holds; the page's own policy forbids playwright's way, which is `eval`."""
    end = time.monotonic() + WAIT_MS / 1000
    while not tab.evaluate(expression):
        assert time.monotonic() < end, f"never: {expression}"
        time.sleep(0.02)


def press(tab: Any, *keys: str) -> None:
    """Keys as a person presses them: each when what the one before did is there."""
    for key in keys:
        before = json.dumps(tab.text_content("#place"))
        tab.keyboard.press(key)
        if key == "Enter":
            until(
                tab,
                "document.getElementById('coding').hidden || "
                f"document.getElementById('place').textContent !== {before}",
            )
    until(tab, "['', 'saved'].includes(document.getElementById('saved').textContent)")


def place(tab: Any) -> int:
    return int(tab.text_content("#place").split()[-1])


def count(tab: Any) -> str:
    return str(tab.text_content("#count"))


def test_ten_texts_by_keyboard_undo_reload(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project()
    with page_in_a_thread(folder) as page:
        requests: list[str] = []
        tab = window(page.url, "anna")
        tab.on("request", lambda request: requests.append(request.url))
        for i in range(10):
            assert place(tab) == i + 1
            press(tab, "12"[i % 2], "Enter")
        assert list(stored(folder, "anna").values()) == ["glad", "sad"] * 5
        assert count(tab) == "10 of 12"
        press(tab, "u")
        until(tab, "document.getElementById('place').textContent === 'Note 10'")
        assert count(tab) == "9 of 12"
        assert not tab.is_checked("input[value=sad]")
        press(tab, "x", "n")
        tab.keyboard.type("both moods")
        press(tab, "Escape")
        tab.reload()
        tab.wait_for_selector("#coding:not([hidden])")
        assert (place(tab), count(tab)) == (11, "10 of 12")
        press(tab, "ArrowLeft")
        until(tab, "document.getElementById('place').textContent === 'Note 10'")
        assert tab.is_checked("input[name=unclear]")
        assert tab.input_value("#note") == "both moods"
        assert list(stored(folder, "anna").values())[9] == "unclear"
        press(tab, "Enter", "1", "Enter", "2", "Enter")
        assert tab.text_content("#done-title") == "Everything is coded"
        assert all(url.startswith(page.origin) for url in requests)
        assert tab.title() == "Coding: mood"  # what a text says in <script> is text


def test_passed_over_texts_come_back(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project(n=4)
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        press(tab, "Enter", "1", "Enter", "Enter", "2", "Enter")
        assert tab.text_content("#done-title") == "2 texts still to code"
        tab.click("#done-back")
        tab.wait_for_selector("#coding:not([hidden])")
        assert place(tab) in (1, 3)
        press(tab, "1", "Enter", "1", "Enter")
        assert tab.text_content("#done-title") == "Everything is coded"
        assert len(stored(folder, "anna")) == 4


def test_a_coder_finds_an_earlier_text_again(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project()
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        press(tab, "1", "Enter", "2", "Enter", "1", "Enter", "2", "Enter", "1", "Enter")
        assert place(tab) == 6
        tab.click("#own-open")
        tab.wait_for_selector("#own[open]")
        assert tab.get_by_role("dialog", name="Your codings").is_visible()
        assert tab.text_content("#own-count") == "5 of 5 texts"
        tab.fill("#own-filter", "sad")
        assert tab.text_content("#own-count") == "2 of 5 texts"
        tab.keyboard.press("1")  # goes into the field, and codes nothing
        tab.fill("#own-filter", "sad")
        tab.locator("#own-list button:visible").nth(1).click()
        until(tab, "document.getElementById('place').textContent === 'Note 4'")
        press(tab, "1")
        tab.click("#own-open")
        tab.wait_for_selector("#own[open]")
        tab.fill("#own-filter", "sad")
        assert tab.text_content("#own-count") == "1 of 5 texts"
        tab.keyboard.press("Escape")
        assert tab.evaluate(FOCUSED) == "own-open"
        tab.focus("#text")
        press(tab, "Enter", "Enter")
        assert place(tab) == 6
        assert [*stored(folder, "anna").values()].count("glad") == 4


def test_a_killed_server_loses_nothing_and_the_page_goes_on(
    project: Callable[..., Path], window: Callable[..., Any]
) -> None:
    folder = project()
    with page_in_a_process(folder) as (page, process):
        tab = window(page.url, "anna")
        press(tab, "1", "Enter", "2")
        process.kill()
        assert list(stored(folder, "anna").values()) == ["glad", "sad"]
        tab.keyboard.press("1")
        tab.wait_for_selector("#trouble:not([hidden])")
        assert "kept here and sent" in tab.text_content("#trouble")
    with page_in_a_process(folder, page.port) as (again, process):
        assert again.url == page.url
        until(tab, "document.getElementById('saved').textContent === 'saved'")
        assert list(stored(folder, "anna").values()) == ["glad", "glad"]
        press(tab, "Enter", "2", "Enter")
        assert list(stored(folder, "anna").values()) == ["glad", "glad", "sad"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WAIT_MS / 1000) in (0, 130)


def test_two_coders_and_an_adjudicator(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project(n=4, double=1)
    with page_in_a_thread(folder) as page:
        anna, ben = window(page.url, "anna"), window(page.url, "ben")
        for i in range(4):
            press(anna, "1", "Enter")
            press(ben, "12"[i % 2], "Enter")
        assert list(stored(folder, "anna").values()) == ["glad"] * 4
        assert list(stored(folder, "ben").values()) == ["glad", "sad"] * 2
        carla = window(page.url)
        assert carla.text_content("#adjudicate-open").startswith("Adjudicate: 2 texts")
        carla.fill("#name", "carla")
        carla.click("#adjudicate-open")
        carla.wait_for_selector("#said:not([hidden])")
        said = carla.locator("#said tbody tr").all_text_contents()
        assert said == ["annaglad", "bensad"]
        press(carla, "2", "Enter", "1", "Enter")
        assert carla.text_content("#done-title") == "Everything is coded"
        lines = [line.split(",") for line in (folder / "gold.csv").read_text().splitlines()[1:]]
        assert [line[5] for line in lines] == ["glad", "sad", "glad", "glad"]
        assert all(line[6] == "coded" for line in lines)


LEVELS = {
    "multi-label": "variable: topics\nquestion: Which?\nlevel: multi-label\nlabels: [work, home, play]\n",
    "interval": "variable: score\nquestion: How much?\nlevel: interval\nrange: [0, 10]\n",
    "free text": "variable: gist\nquestion: In a sentence?\nlevel: free text\n",
    "ordinal": "variable: heat\nquestion: How hot?\nlevel: ordinal\nlabels: [cold, warm, hot]\n",
    "span": "variable: claims\nquestion: Where?\nlevel: span\nlabels: [claim, blame]\n",
}


def test_several_labels(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project(LEVELS["multi-label"], n=4)
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        press(tab, "3", "1", "Enter", "-", "Enter", "1", "1", "Enter", "x", "Enter")
        assert list(stored(folder, "anna").values()) == ["work|play", "coded", "unclear"]  # "coded": none of the labels
        assert tab.text_content("#done-title") == "1 text still to code"  # a label taken back is no coding


def test_numbers(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project(LEVELS["interval"], n=4)
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        tab.keyboard.type("7,5")
        press(tab, "Enter")
        tab.keyboard.type("70")
        assert tab.get_attribute("#number", "aria-invalid") == "true"
        assert tab.get_by_role("alert").filter(has_text="Not saved: expected 0 to 10.").is_visible()
        press(tab, "Backspace", "Enter", "Escape", "x", "Enter")
        assert list(stored(folder, "anna").values()) == ["7.5", "7", "unclear"]


def test_sentences(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project(LEVELS["free text"], n=4)
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        tab.keyboard.type("Sun\u00ad, 1 <b>& more</b>")
        press(tab, "Control+Enter")
        until(tab, "document.getElementById('place').textContent === 'Text 2'")
        assert list(stored(folder, "anna").values()) == ["Sun\u00ad, 1 <b>& more</b>"]


def test_passages_by_keyboard_and_mouse(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project(LEVELS["span"], n=12)
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        while "😀" not in tab.text_content("#text"):
            press(tab, "Enter")
        item_text = tab.text_content("#text")
        for _ in range(20):  # to the last word, past the emoji, which is one character for Python and two for browsers
            tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowLeft")
        press(tab, "Shift+ArrowRight", "2")
        tab.dblclick("#text >> text=Note", position={"x": 5, "y": 10})
        press(tab, "1")
        (value,) = stored(folder, "anna").values()
        spans = json.loads(value)
        assert [item_text[start:end] for start, end, _ in spans] == ["Note", "platform cold."]
        assert [label for _, _, label in spans] == ["claim", "blame"]
        tab.click("[aria-label='Remove “Note”']")
        press(tab)
        (value,) = stored(folder, "anna").values()
        assert [label for _, _, label in json.loads(value)] == ["blame"]
        assert "".join(tab.locator("#text mark").all_text_contents()) == "platform cold."


CONTRAST = """
() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number)
  const channel = value => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b)
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = numbers(getComputedStyle(one).backgroundColor)
      if (colour.length < 4 || colour[3] > 0.99) return colour
    }
    return [255, 255, 255]
  }
  const found = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement
    if (!node.textContent.trim() || !element.checkVisibility() || element.closest("script, noscript")) continue
    const [one, other] = [light(numbers(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a)
    found.push([(one + 0.05) / (other + 0.05), node.textContent.trim().slice(0, 40)])
  }
  return found
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(
    project: Callable[..., Path], window: Callable[..., Any], scheme: str
) -> None:
    folder = project()
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna", color_scheme=scheme)
        press(tab, "1", "e")
        seen = tab.evaluate(CONTRAST)
        tab.keyboard.press("?")
        tab.wait_for_selector("#help[open]")
        seen += tab.evaluate(CONTRAST)
        assert len(seen) > 60
        assert [pair for pair in seen if pair[0] < 4.5] == []  # WCAG 2.2, 1.4.3


FOCUSED = "document.activeElement.id || document.activeElement.name || document.activeElement.tagName"


def test_names_roles_and_the_way_of_the_tab_key(project: Callable[..., Path], window: Callable[..., Any]) -> None:
    folder = project()
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        press(tab, "1")
        assert tab.get_attribute("html", "lang") == "en"
        assert tab.get_by_role("article", name="note 1").is_visible()
        assert tab.get_by_role("group", name="Which mood does the writer show?").is_visible()
        assert tab.get_by_role("radio", name="glad Joy, praise or thanks.").is_checked()
        assert tab.get_by_role("checkbox", name="unclear").is_visible()
        assert tab.get_by_role("textbox", name="Note").is_visible()
        assert tab.get_by_role("progressbar", name="1 of 12").is_visible()
        assert tab.get_by_role("status").text_content() == "Coded glad."
        for name in ("Back", "Undo", "Next", "Help", "anna: change"):
            assert tab.get_by_role("button", name=name, exact=True).is_visible()
        assert tab.locator("h1").count() == 1
        nameless = (
            "[...document.querySelectorAll('button, input, textarea, summary')].filter(one => one.checkVisibility()"
        )
        nameless += " && !(one.labels?.length || one.textContent.trim() || one.ariaLabel)).length"
        assert tab.evaluate(nameless) == 0
        tab.focus("a.skip")
        way = ["A"]
        while way[-1:] != ["next"]:
            tab.keyboard.press("Tab")
            way.append(tab.evaluate(FOCUSED))
            # The text has a bar beside it and a choice's whole row is outlined; all else has the outline itself.
            outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none" or way[-1] in ("text", "label", "unclear")
        assert way == [
            *("A", "leave", "own-open", "help-open", "text", "label", "SUMMARY", "unclear"),
            *("note", "back", "undo", "next"),
        ]
        tab.keyboard.press("Enter")  # on the button itself
        until(tab, "document.getElementById('place').textContent === 'Note 2'")


def test_help_holds_the_focus_and_single_keys_can_be_off(
    project: Callable[..., Path], window: Callable[..., Any]
) -> None:
    folder = project()
    with page_in_a_thread(folder) as page:
        tab = window(page.url, "anna")
        tab.keyboard.press("?")
        dialog = tab.get_by_role("dialog", name="Keys")
        assert dialog.is_visible()
        for _ in range(8):
            tab.keyboard.press("Tab")
            assert tab.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#help')")
        tab.get_by_label("Single keys choose labels").uncheck()
        tab.keyboard.press("Escape")
        assert not dialog.is_visible()
        press(tab, "1", "u", "x")
        assert stored(folder, "anna") == {}
        tab.get_by_role("radio", name="sad").check()
        press(tab, "Enter")
        assert list(stored(folder, "anna").values()) == ["sad"]
        tab.click("#help-open")
        tab.get_by_label("Single keys choose labels").check()
        tab.get_by_label("Go to the next text as soon").check()
        tab.keyboard.press("Escape")
        tab.keyboard.press("1")
        until(tab, "document.getElementById('place').textContent === 'Note 3'")
        assert list(stored(folder, "anna").values()) == ["sad", "glad"]


def test_at_400_per_cent_on_a_phone_and_without_motion(
    project: Callable[..., Path], window: Callable[..., Any]
) -> None:
    folder = project()
    with page_in_a_thread(folder) as page:
        # 1280 pixels at 400 per cent are 320 (WCAG 2.2, 1.4.10); at 200 per cent 640.
        for width in (320, 390, 640):
            tab = window(
                page.url, "anna", viewport={"width": width, "height": 640}, has_touch=True, reduced_motion="reduce"
            )
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"
            heights = "[...document.querySelectorAll('.choice, .steps button')].map(one => one.offsetHeight)"
            assert min(tab.evaluate(heights)) >= 24  # WCAG 2.2, 2.5.8
            tab.tap("label:has(input[value=glad])")
            press(tab)
            assert tab.is_checked("input[value=glad]")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_wrong_token_is_said(project: Callable[..., Path], chromium: Any) -> None:
    with page_in_a_thread(project()) as page:
        tab = chromium.new_page()
        tab.goto(f"{page.origin}/#wrong")
        tab.wait_for_selector("#trouble:not([hidden])")
        assert "lacks the token" in tab.text_content("#trouble")
        tab.close()
