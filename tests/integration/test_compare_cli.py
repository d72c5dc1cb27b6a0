"""`consilience compare` and `consilience power` as a user meets them: tables, pages, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verdict_words import VERDICT_WORDS, spoken

Command = Callable[..., Any]


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Two models on twelve items in two categories; b is better by 1 on every second item."""
    rows = [
        f"q{i},{model},{i % 4 + (model == 'b' and i % 2)},{'xy'[i % 3 == 0]},{i // 2}"
        for i in range(12)
        for model in "ab"
    ]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(["item,model,score,category,topic", *rows]) + "\n")
    return path


def test_a_table_of_two_models(consilience: Command, scores: Path) -> None:
    answer = consilience("compare", scores, "--margin", "1", "--cluster", "topic")
    assert answer.code == 0, answer.err
    assert "a - b" in answer.out
    assert "-0.50" in answer.out
    assert "12 items in 6 topic; 12 scored under every model" in answer.out
    assert "The intervals do not include" in answer.out
    assert not VERDICT_WORDS.search(answer.out)


def test_the_reference_comes_second(consilience: Command, scores: Path) -> None:
    pairs = consilience("compare", scores, "--reference", "a", "--json").json["pairs"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [("b", "a")]
    assert pairs[0]["difference"]["value"] == 0.5


def test_names_given_and_files_of_the_same_name(consilience: Command, tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        lines = [f"{i},{i % 3 + (run == 'two') * (i % 2)}" for i in range(9)]
        (tmp_path / run / "scores.csv").write_text("item,score\n" + "\n".join(lines) + "\n")
    paths = [tmp_path / "one" / "scores.csv", tmp_path / "two" / "scores.csv"]
    assert [*consilience("compare", *paths, "--json").json["models"]] == [
        "scores (one/scores.csv)",
        "scores (two/scores.csv)",
    ]
    named = consilience("compare", f"old={paths[0]}", f"new={paths[1]}", "--json").json
    assert [*named["models"]] == ["old", "new"]
    assert consilience("compare", paths[0], paths[0]).code == 2


def test_models_text_is_harmless_in_page_and_terminal(consilience: Command, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[31m"
    rows = [
        {"item": f"<img src=x>{i}", "model": m, "score": i % 3, "category": evil} for i in range(6) for m in (evil, "b")
    ]
    rows += [{"item": f"<img src=x>{i}", "model": "c", "score": i % 2, "category": "<i>"} for i in range(6)]
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = consilience("compare", path, "--html", tmp_path / "page.html")
    assert answer.code == 0, answer.err
    page = (tmp_path / "page.html").read_text()
    assert "\x1b" not in answer.out + page
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_the_page_has_every_figure_with_a_table_and_no_verdict(consilience: Command, tmp_path: Path) -> None:
    values = {"a": "0123401234", "b": "1133412344", "c": "0022200312"}
    rows = [f"{i},{m},{v},{'xyz'[i % 3]}" for m, text in values.items() for i, v in enumerate(text)]
    rows[5] = "5,a,,z"
    (tmp_path / "s.csv").write_text("\n".join(["item,model,score,category", *rows]) + "\n")
    page_path = tmp_path / "page.html"
    first = consilience("compare", tmp_path / "s.csv", "--html", page_path, "--margin", "0.5")
    assert first.code == 0, first.err
    page = page_path.read_text()
    for section in ("differences", "models", "ranks", "categories", "reading"):
        part = page.partition(f'<section id="{section}">')[2].partition("</section>")[0]
        assert part, section
        assert part.count("<svg") <= part.count("<table"), section
    assert "1 not scored" in page
    assert not VERDICT_WORDS.search(spoken(page))
    assert "<b>" not in page
    assert "://" not in page
    refused = consilience("compare", tmp_path / "s.csv", "--html", page_path)
    assert (refused.code, "--force" in refused.err) == (2, True)
    assert consilience("compare", tmp_path / "s.csv", "--html", page_path, "--force").code == 0


@pytest.mark.parametrize(
    ("rows", "words", "says"),
    [
        (["1,a,1", "2,a,2"], [], "a comparison takes two models; there is only 'a'"),
        (["1,a,1", "2,b,2"], [], "share 0 of 1 and 1 items"),
        (["1,a,nan", "1,b,2"], [], "a has no score on any of its 1 items: 1 not scored"),
        (["1,a,1", "2,a,1", "1,b,2", "2,b,3"], ["--cluster", "topic"], "no field 'topic' to cluster by"),
        (["1,a,1", "2,a,1", "1,b,2", "2,b,3"], ["--model", "aa"], "no model is called 'aa'. Did you mean 'a'?"),
        (["1,a,1", "2,a,1", "1,b,2", "2,b,3"], ["--metric", "acc"], "no metric is called 'acc'"),
        (["1,a,1", "2,a,1", "1,b,2", "2,b,3"], ["--margin", "-1"], "the margin is -1"),
        (["1,a,1", "2,a,1", "1,b,2", "2,b,3"], ["--level", "95"], "the level is 95"),
        (["1,a,1", "2,a,1", "1,b,2", "2,b,3"], ["--min-shared", "2"], "--min-shared is 2"),
        (["1,a,1", "1,b,2"], [], "the only item with a score under both"),
    ],
)
def test_bad_input_is_one_line(
    consilience: Command, tmp_path: Path, rows: list[str], words: list[str], says: str
) -> None:
    (tmp_path / "s.csv").write_text("\n".join(["item,model,score", *rows]) + "\n")
    answer = consilience("compare", tmp_path / "s.csv", *words)
    assert answer.code == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err


def test_one_cluster(consilience: Command, tmp_path: Path) -> None:
    rows = [f"{i},{m},{i},all" for i in range(4) for m in "ab"]
    (tmp_path / "s.csv").write_text("\n".join(["item,model,score,cluster", *rows]) + "\n")
    answer = consilience("compare", tmp_path / "s.csv")
    assert answer.code == 2
    assert "all 4 items with a score under both models belong to one" in answer.err


def test_no_such_file(consilience: Command, tmp_path: Path) -> None:
    answer = consilience("compare", tmp_path / "nothing.csv")
    assert (answer.code, "no file or folder" in answer.err) == (2, True)


def test_power_from_a_pilot_and_what_it_refuses(consilience: Command, scores: Path) -> None:
    # Differences of 0 and -1 in turn, n = 12: the standard deviation is sqrt(12 / 11) / 2.
    found = consilience("power", "--pilot", scores, "--items", "48", "--json").json
    assert found["spread"] == pytest.approx((12 / 11) ** 0.5 / 2)
    told = consilience("power", "--share", "0.5", "--width", "0.05").out
    assert "381 items" in told  # Wilson's interval at one half: n = 1.96^2 (1 / 0.1^2 - 1) = 380.3
    doubled = consilience(
        "power", "--share", "0.5", "--width", "0.05", "--cluster-size", "3", "--correlation", "0.5", "--json"
    ).json
    assert doubled["items_for_width"] == 762
    assert "nothing is asked" in consilience("power", "--spread", "1").err
    assert "given in 2 ways" in consilience("power", "--items", "9", "--spread", "1", "--share", "0.5").err
