"""The fusion report: safe, self-contained, whole, and silent about what it was not given."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser

import pytest
from example import example_results, without
from hypothesis import given
from hypothesis import strategies as st

from consilience.report import write_fusion_report
from consilience.report.fusion import chunks

OPTIONAL = ("note", "baseline", "alignment", "samples", "training", "seconds", "versions", "caveats")
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: tags, attributes and text; unbalanced tags fail."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.pieces.append(data)

    @property
    def ids(self) -> set[str]:
        return {value for name, value in self.attributes if name == "id"}

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def words(self) -> str:
        """The text of every element, a blank between any two."""
        return " ".join(" ".join(self.pieces).split())


@pytest.fixture(scope="module")
def results():
    return example_results()


def page_of(results, tmp_path) -> Page:
    write_fusion_report(results, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_everything_given_is_on_the_page(results, tmp_path):
    page = page_of(results, tmp_path)
    for name, model in results["models"].items():
        assert name in page.words
        assert model["about"] in page.words
    for text in (
        results["title"],
        results["note"],
        "14 March 2026, 09:26 UTC",
        *results["caveats"],
        *results["versions"],
    ):
        assert text in page.words
    for sample in results["samples"]:
        assert sample["prompt"] in page.words
        assert f"expected {sample['expected']} pivot {sample['answers']['pivot']}" in page.words
    for reason, count in results["data"]["set_aside"].items():
        assert f"{reason} {count}" in page.words
    assert results["recipe"] in page.text
    assert page.tags.count("svg") == 2 + len(results["training"]) + 3  # forests, curves, legend


def test_headline_by_hand(results, tmp_path):
    small = copy.deepcopy(results)
    model = small["models"]["TIES"]

    def estimate(value, low, high, units):
        return {"value": value, "low": low, "high": high, "standard_error": 0.01, "n": 600, "units": units,
                "level": 0.95, "method": "by hand"}  # fmt: skip

    model["accuracy"] = estimate(0.742, 0.71, 0.774, "questions")
    model["nll"] = estimate(0.41, 0.39, 0.43, "conversations")
    model["differences"] = {
        "sft": {
            "accuracy": estimate(0.13, 0.09, 0.17, "questions"),
            "nll": estimate(-0.05, -0.07, -0.03, "conversations"),
        },
        "pivot": {"accuracy": None, "nll": estimate(-0.2, -0.25, -0.15, "conversations")},
    }
    page = page_of(small, tmp_path)
    assert f"The result is TIES: {model['about']}." in page.words
    assert (
        "Accuracy 0.742 [0.710, 0.774] over 600 questions; minus plain fine-tuning (sft): +0.130 [+0.090, +0.170]."
    ) in page.words
    assert (
        "Held-out replies cost 0.410 [0.390, 0.430] nats per byte over 600 conversations; minus plain fine-tuning "
        "(sft): −0.050 [−0.070, −0.030]; minus the pivot: −0.200 [−0.250, −0.150]. Lower is better."
    ) in page.words


EVIL = '<script>alert("x")</script>"><img src=x onerror=alert(1)> {{ 7 * 7 }}'


def test_text_of_models_and_users_is_escaped(results, tmp_path):
    evil = copy.deepcopy(without(results, "models"))
    evil["models"] = {
        EVIL if name == "TIES" else name: model for name, model in copy.deepcopy(results["models"]).items()
    }
    evil |= {"title": EVIL, "run": EVIL, "note": EVIL, "recipe": EVIL, "result": EVIL, "caveats": [EVIL]}
    evil["models"]["A"] |= {"about": EVIL, "path": EVIL}
    evil["models"]["A"]["nll_by_group"][EVIL] = results["models"]["A"]["nll"]
    evil["models"]["A"]["nll"]["method"] = EVIL
    evil["samples"] = [{"prompt": EVIL, "answers": {EVIL: EVIL}}]
    evil["alignment"]["B"]["examples"] = [{"pivot": [[EVIL, True]], "source": [[EVIL, False]]}]
    evil["alignment"]["B"]["teacher_share"][EVIL] = {"source": 0.5, "pivot": 0.5}
    evil["training"] = {EVIL: results["training"]["sft"]}
    evil["data"]["set_aside"] = {EVIL: 1}
    evil["data"]["train"]["groups"][EVIL] = 1
    evil["seconds"], evil["versions"] = {EVIL: 1.0}, {EVIL: EVIL}
    page = page_of(evil, tmp_path)
    assert not {"script", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count('<script>alert("x")</script>') > 20
    assert "{{ 7 * 7 }}" in page.text


def test_nothing_is_fetched(results, tmp_path):
    page = page_of(results, tmp_path)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src", "xlink:href"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", html)


def test_links_within_the_page_lead_somewhere(results, tmp_path):
    page = page_of(results, tmp_path)
    assert {value[1:] for name, value in page.attributes if name == "href"} <= page.ids


def test_same_results_same_bytes(results, tmp_path):
    for name in ("one.html", "two.html"):
        write_fusion_report(copy.deepcopy(results), tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_no_verdicts(results, tmp_path):
    words = page_of(results, tmp_path).words
    assert not re.search(
        r"(?i)significan|p-value|\bpass(ed)?\b|\bfail(ed)?\b|\bwin(s|ner)?\b|\bbest\b|outperform", words
    )


def test_missing_parts_are_absent(results, tmp_path):
    small = copy.deepcopy(without(results, *OPTIONAL))
    for model in small["models"].values():
        model |= {"accuracy": None, "accuracy_by_task": {}, "outcomes": {}, "path": None}
        model["differences"] = {"pivot": {"nll": model["nll"], "accuracy": None}} if model["role"] != "pivot" else {}
    small["data"]["set_aside"] = {}
    page = page_of(small, tmp_path)
    assert page.ids == {"differences", "models", "nll-by-group", "data", "recipe", "reading"}
    assert "None" not in page.words
    assert "nothing 0" in page.words


def test_outcomes_are_counted_over_tasks(results, tmp_path):
    small = copy.deepcopy(results)
    for model in small["models"].values():
        del model["outcomes"]
    assert "outcomes" not in page_of(small, tmp_path).ids
    small["models"]["sft"]["outcomes"] = {"sums": {"correct": 3, "wrong": 1}, "facts": {"correct": 4, "cut off": 2}}
    assert "model correct wrong cut off sft 7 1 2 Counts" in page_of(small, tmp_path).words


def test_a_source_may_teach_nothing_and_be_mapped_otherwise(results, tmp_path):
    small = copy.deepcopy(results)
    for name in ("mapped_mass", "kept_mass", "teacher_share"):
        del small["alignment"]["A"][name]
    small["alignment"]["B"]["vocabulary"] = {"exact": 5, "edit distance": 12345, "unmapped": 0}
    small["alignment"]["C"]["examples"] = []
    words = page_of(small, tmp_path).words
    assert "tokens: exact tokens: statistics tokens: unmapped tokens: edit distance" in words
    assert "5 – 0 12,345" in words


@pytest.mark.parametrize("part", OPTIONAL)
def test_any_optional_part_may_be_none(results, tmp_path, part):
    page_of(results | {part: None}, tmp_path)


def test_an_unknown_interval_is_named(results, tmp_path):
    small = copy.deepcopy(results)
    for place in (small["models"]["TIES"], small["models"]["TIES"]["differences"]["sft"]):
        place["nll"] |= {"low": None, "high": None, "standard_error": None, "n": 1}
    assert page_of(small, tmp_path).words.count("[no interval]") >= 3


def test_half_a_surrogate_pair_does_not_stop_the_report(results, tmp_path):
    page = page_of(results | {"samples": [{"prompt": "smile \ud83d", "answers": {"pivot": ""}}]}, tmp_path)
    assert "smile ?" in page.words
    assert "(empty)" in page.words


def test_chunks_by_hand():
    pivot = [("zo", False), ("r", False), ("gal", False), (" mi", True), ("lu", False)]
    source = [("zorgal", False), (" mi", True), ("l", False), ("u", False)]
    assert chunks(pivot, source) == [
        (pivot[:3], source[:1]),
        (pivot[3:4], source[1:2]),
        (pivot[4:], source[2:]),
    ]


def test_chunks_of_texts_that_part_end_in_one_chunk():
    pivot, source = [("a", True), ("b", False), ("c", False)], [("a", True), ("x", False)]
    assert chunks(pivot, source) == [(pivot[:1], source[:1]), (pivot[1:], source[1:])]
    assert chunks(pivot, []) == [(pivot, [])]
    assert chunks([], []) == []


boxes = st.lists(st.tuples(st.text("ab", max_size=3), st.booleans()), max_size=8)


@given(boxes, boxes)
def test_chunks_keep_every_token_in_order(pivot, source):
    found = chunks(pivot, source)
    assert [box for ours, _ in found for box in ours] == pivot
    assert [box for _, theirs in found for box in theirs] == source
