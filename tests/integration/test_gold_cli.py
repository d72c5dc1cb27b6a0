"""`consilience gold` from the plan to the gold table, and every input that it refuses."""

from __future__ import annotations

import csv
import json
import socket
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gold_project import CODEBOOK, MODEL_LABELS, make_project, plan_words

Consilience = Callable[..., Any]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def gold_rows(project: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((project / "gold.csv").open()))


def test_from_plan_to_gold(consilience: Consilience, project: Path, tmp_path: Path) -> None:
    found = consilience(*plan_words(project, "--n", 16, "--at-least", 6, "--double", 0.5, "--json")).json
    # 30 QUELLE and 10 ZUNFT: 16 in proportion would be 12 and 4.
    assert (
        found["strata"]
        == {
            "ZUNFT": {"corpus": 10, "dev": 2, "test": 4, "twice": 3},
            "QUELLE": {"corpus": 30, "dev": 2, "test": 8, "twice": 5},
        }
        or found["strata"]["ZUNFT"]["dev"] + found["strata"]["QUELLE"]["dev"] == 4
    )
    assert consilience("gold", "export", project, "--coder", "anna", "--out", tmp_path / "anna.csv").code == 0
    rows = list(csv.reader((tmp_path / "anna.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 17
    for i, row in enumerate(rows[1:]):
        row[2] = ("glad", "sad")[i % 2]
    csv.writer((tmp_path / "anna.csv").open("w")).writerows(rows)
    taken = consilience("gold", "import", project, tmp_path / "anna.csv", "--coder", "anna", "--json").json
    assert taken == {"coder": "anna", "new": 16, "same": 0, "replaced": 0, "empty": 0}
    rows_ = gold_rows(project)
    assert Counter(row["label"] for row in rows_) == {"glad": 8, "sad": 8}
    weights = sum(1 / float(row["probability"]) for row in rows_ if row["split"] == "test")
    assert weights == pytest.approx(40)  # the test part stands for the whole corpus
    status = consilience("gold", "status", project, "--json").json
    assert status["status"] == {"coded": 16, "disagreement": 0, "unclear": 0, "uncoded": 0}
    assert "no text is coded by two people yet" in consilience("gold", "status", project).out


def test_the_same_seed_draws_the_same_texts_in_the_same_order(consilience: Consilience, tmp_path: Path) -> None:
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        project = make_project(tmp_path / name)
        consilience(*plan_words(project, "--n", 12, "--seed", seed))
        consilience("gold", "export", project)
        orders.append([row["id"] for row in gold_rows(project)])
    assert orders[0] == orders[1] != orders[2]


def test_an_extension_holds_the_sample_and_another_design_is_refused(consilience: Consilience, project: Path) -> None:
    consilience(*plan_words(project, "--n", 12))
    consilience("gold", "export", project)
    before = gold_rows(project)
    assert consilience(*plan_words(project, "--n", 20, "--json")).json["added"] == 8
    consilience("gold", "export", project)
    after = gold_rows(project)
    assert [(row["id"], row["split"]) for row in after[:12]] == [(row["id"], row["split"]) for row in before]
    assert sum(1 / float(row["probability"]) for row in after if row["split"] == "test") == pytest.approx(40)
    for words, said in (
        (plan_words(project, "--n", 20, "--seed", 3), "was drawn with seed 0, now 3"),
        (plan_words(project, "--n", 12), "20 texts are drawn already"),
        (plan_words(project, "--n", 24, "--bins", 2, "--confidence", "sure"), "was drawn with confidence None"),
    ):
        answer = consilience(*words)
        assert answer.code == 2
        assert said in answer.err
    (project / "notes.csv").write_text((project / "notes.csv").read_text().replace("sun", "moon"))
    assert "is not the one that" in consilience(*plan_words(project, "--n", 24)).err
    consilience("gold", "export", project)
    assert gold_rows(project) == after


def test_more_coders_later(consilience: Consilience, project: Path, tmp_path: Path) -> None:
    consilience(*plan_words(project, "--n", 12, "--double", 0))
    for coder, code_ in (("anna", 0), ("ben", 2)):
        out = tmp_path / f"{coder}.csv"
        assert consilience("gold", "export", project, "--coder", coder, "--out", out).code == code_
        if not code_:
            (tmp_path / "done.csv").write_text(out.read_text(encoding="utf-8-sig").replace(",,,", ",glad,,"))
            assert consilience("gold", "import", project, tmp_path / "done.csv", "--coder", coder).code == 0
    # Half of every part of every stratum, rounded up: of 2 and 4, and of 1 and 5.
    assert consilience(*plan_words(project, "--n", 12, "--double", 0.5, "--json")).json["twice"] == 7
    answer = consilience("gold", "export", project, "--coder", "ben", "--out", tmp_path / "ben.csv", "--json")
    assert answer.json["texts"] == 7


def test_clusters_are_drawn_first(consilience: Consilience, project: Path) -> None:
    words = ["gold", "plan", project, "--corpus", project / "notes.csv", "--id", "id", "--cluster", "author"]
    found = consilience(*words, "--per-cluster", 2, "--n", 8, "--json").json
    assert (found["texts"], found["clusters"]) == (8, 4)
    consilience("gold", "export", project)
    rows = gold_rows(project)
    assert {row["cluster"] for row in rows} < {f"author {i}" for i in range(8)}
    # One of eight authors is for development, three for the test; two of each one's five texts.
    assert {row["split"]: float(row["probability"]) for row in rows} == pytest.approx(
        {"dev": 1 / 8 * 2 / 5, "test": 3 / 8 * 2 / 5}
    )


def test_what_annotate_run_wrote_is_stratified_by(consilience: Consilience, project: Path) -> None:
    (project / "labels").mkdir()
    lines = [
        {"id": f"n{i}", "label": "glad" if i % 2 else None, "status": "ok" if i % 2 else "refused", "logprobs": {}}
        for i in range(40)
    ]
    path = project / "labels" / "model.zero_shot.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["gold", "plan", project, "--corpus", project / "notes.csv", "--id", "id", "--n", 10, "--json"]
    assert consilience(*words, "--labels", path).json["strata"].keys() == {"glad", "(refused)"}
    path.write_text(json.dumps(lines[0]) + "\n")
    other = make_project(project.parent / "other")
    assert "annotate the whole corpus first" in consilience("gold", "plan", other, *words[3:], "--labels", path).err


def test_the_recipe_says_where_the_texts_are(consilience: Consilience, project: Path) -> None:
    (project / "recipe.yaml").write_text(
        "data: {path: notes.csv, id: id, cluster: author}\nexamples: {path: shots.csv}\n"
    )
    (project / "shots.csv").write_text("text,label\nNote 3: the sun is out  and so are we.,glad\n")
    found = consilience("gold", "plan", project, "--n", 39, "--json").json
    assert found["left_out"] == {"empty": 0, "shown to models as examples": 1}
    consilience("gold", "export", project)
    assert "n3" not in {row["id"] for row in gold_rows(project)}


def test_strata_of_label_and_confidence(consilience: Consilience, project: Path) -> None:
    found = consilience(*plan_words(project, "--n", 20, "--confidence", "sure", "--json")).json["strata"]
    # n0, n4, ... of ZUNFT have a confidence of 0, 0.4, 0.8, 0.2 and 0.6, twice each; the median is 0.4.
    assert {name: row["corpus"] for name, row in found.items() if name.startswith("ZUNFT")} == {
        "ZUNFT, confidence 0 to 0.4": 4,
        "ZUNFT, confidence 0.4 to 0.8": 6,
    }


def test_empty_texts_and_examples_are_never_drawn(consilience: Consilience, project: Path) -> None:
    rows = list(csv.reader((project / "notes.csv").open()))
    rows[1][1], rows[2][1] = "  ", "Thank you all,  best day!"
    csv.writer((project / "notes.csv").open("w")).writerows(rows)
    found = consilience(*plan_words(project, "--n", 38)).out
    assert "38 of 38 texts drawn; never drawn: 1 empty, 1 shown to models as examples" in found


def test_annotate_reads_the_gold_table(consilience: Consilience, project: Path, tmp_path: Path) -> None:
    from consilience.annotate.gold import read_gold
    from consilience.annotate.recipe import read_project

    recipe = "data: {path: notes.csv, id: id}\nmodels: {tiny: {path: tiny}}\nstrategies: [zero_shot]\n"
    (project / "recipe.yaml").write_text(recipe)
    assert consilience("gold", "plan", project, "--stratify", "model", "--n", 16, "--dev", 0.25).code == 0
    consilience("gold", "export", project, "--coder", "anna", "--out", tmp_path / "anna.csv")
    filled = (tmp_path / "anna.csv").read_text(encoding="utf-8-sig").replace(",,,", ",glad,,", 10)
    (tmp_path / "done.csv").write_text(filled)
    consilience("gold", "import", project, tmp_path / "done.csv", "--coder", "anna")
    gold = read_gold(read_project(project))
    assert (len(gold.dev) + len(gold.test), gold.coders) == (10, ("anna",))
    assert len(gold.test) + len(gold.unlabelled) == 12
    assert {text.why for text in gold.unlabelled} <= {"uncoded"}
    for part in (gold.dev, gold.test):  # what is coded of a part stands for the strata that it has texts of
        strata = {"QUELLE": 30, "ZUNFT": 10}
        stands_for = sum(1 / item.probability for item in part)
        assert stands_for == pytest.approx(sum(strata[name] for name in {item.stratum for item in part}))


def test_a_width_says_how_many(consilience: Consilience, project: Path) -> None:
    make_project(project, rows=4000)
    words = ["gold", "plan", project, "--corpus", project / "notes.csv", "--json"]
    found = consilience(*words, "--width", 0.1, "--dev", 0.2).json
    # Wilson at 1/2: z^2 (1 / (4 * 0.1^2) - 1) = 92.2.
    assert found["test"] == pytest.approx(93, abs=1)
    assert found["dev"] == pytest.approx(93 / 4, abs=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n", 12, "--stratify", "modell"], "has no column 'modell'"),
        (["--n", 12, "--text", "txt"], "has no column 'txt' (the texts). Did you mean 'text'?"),
        (["--n", 1], "--n is 1; expected at least 2"),
        (["--n", 2, "--stratify", "author"], "2 gold texts for 8 strata: fewer than one to each"),
        (["--n", 41], "41 are to be drawn of 40"),
        ([], "how many texts? Give --n (so many), or --width"),
        (["--n", 12, "--width", 0.1], "how many texts?"),
        (["--width", 0.1, "--cluster", "author", "--per-cluster", 2], "takes --correlation"),
        (["--n", 12, "--per-cluster", 2], "--per-cluster takes --cluster"),
        (["--n", 12, "--dev", 0.8], "--dev is 0.8"),
        (["--n", 12, "--id", "author"], "row 9: the identifier (author) is 'author 0' a second time"),
        (["--n", 12, "--stratify", "model", "--confidence", "text", "--bins", 2], "row 1, column text: 'Note 0"),
        (["--n", 12, "--confidence", "sure"], "--confidence divides the strata of --stratify"),
        (["--n", 12, "--stratify", "model", "--bins", 2], "--bins is 2; expected 2 or more with --confidence"),
        (["--width", 5], "--width is 5; expected half the width of an interval, such as 0.05"),
        (["--n", 12, "--corpus", "none.csv"], "no file none.csv"),
    ],
)
def test_plans_that_cannot_be(consilience: Consilience, project: Path, words: list[object], said: str) -> None:
    answer = consilience("gold", "plan", project, "--corpus", project / "notes.csv", *words)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert not list(project.glob("gold*"))


def test_a_gold_table_of_ones_own_is_not_overwritten(consilience: Consilience, project: Path) -> None:
    (project / "gold.csv").write_text("id,label\nn1,glad\n")
    answer = consilience(*plan_words(project, "--n", 12))
    assert "gold.csv is there already, and no gold.sqlite that it came from" in answer.err
    assert (project / "gold.csv").read_text() == "id,label\nn1,glad\n"


def test_fewer_texts_than_labels(consilience: Consilience, tmp_path: Path) -> None:
    codebook = "variable: mood\nquestion: Which?\nlabels: [a, b, c, d]\n"
    project = make_project(tmp_path / "project", codebook=codebook)
    answer = consilience("gold", "plan", project, "--corpus", project / "notes.csv", "--n", 3)
    assert "3 gold texts for 4 labels: fewer than one to each" in answer.err


def test_bytes_that_are_no_text_are_named_by_row(consilience: Consilience, project: Path) -> None:
    (project / "notes.csv").write_bytes("id,text\nn0,good\nn1,schön\n".encode("latin-1"))
    answer = consilience("gold", "plan", project, "--corpus", project / "notes.csv", "--n", 2)
    assert "row 2, column 2: byte 0xf6 is not utf-8 text" in answer.err
    answer = consilience("gold", "plan", project, "--corpus", project / "notes.csv", "--n", 2, "--encoding", "latin-1")
    assert answer.code == 0


def test_other_bad_ways_in(consilience: Consilience, project: Path, tmp_path: Path) -> None:
    assert "Draw one first: consilience gold plan" in consilience("gold", "status", project).err
    assert "no folder" in consilience("gold", "status", tmp_path / "nowhere").err
    consilience(*plan_words(project, "--n", 12))
    assert "takes both --coder NAME and --out FILE" in consilience("gold", "export", project, "--coder", "a").err
    (project / "codebook.yaml").write_text(CODEBOOK.replace("variable: mood", "variable: tone"))
    assert "is of mood (nominal), the codebook of tone" in consilience("gold", "status", project).err
    connection = sqlite3.connect(project / "gold.sqlite")
    connection.execute("DROP TABLE texts")
    connection.close()


def test_print_shows_no_terminal_escape(consilience: Consilience, project: Path) -> None:
    text = (project / "notes.csv").read_text().replace(MODEL_LABELS[0], "\x1b[31mred")
    (project / "notes.csv").write_text(text)
    assert "\x1b" not in consilience(*plan_words(project, "--n", 12)).out


def test_a_sample_that_was_drawn_elsewhere(consilience: Consilience, project: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,mood,weight\n" + "".join(f"n{i},glad,0.{i + 1}\n" for i in range(8)))
    words = ["gold", "plan", project, "--corpus", project / "notes.csv", "--id", "id", "--drawn", tmp_path / "mine.csv"]
    assert "as a simple random sample of 40 texts" in consilience(*words).out
    assert consilience("gold", "import", project, tmp_path / "mine.csv", "--coder", "anna").code == 0
    rows = gold_rows(project)
    assert {row["split"]: float(row["probability"]) for row in rows} == pytest.approx({"dev": 2 / 40, "test": 6 / 40})
    assert {row["label"] for row in rows} == {"glad"}
    assert "is there already" in consilience(*words).err
    assert "is not extended by drawing" in consilience(*plan_words(project, "--n", 20)).err
    other = make_project(tmp_path / "other")
    words[2] = other
    assert consilience(*words, "--probability", "weight").code == 0
    consilience("gold", "export", other)
    for row in gold_rows(other):
        share = {"dev": 2 / 8, "test": 6 / 8}[row["split"]]
        assert float(row["probability"]) == pytest.approx((int(row["id"][1:]) + 1) / 10 * share)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("id,p\nn0,0.5\nn99,0.5\n", "row 2: 'n99' is not in"),
        ("id,p\nn0,0.5\nn0,0.5\n", "row 2: 'n0' a second time"),
        ("id,p\nn0,0.5\nn1,0\n", "row 2: the probability is '0'; expected a number above 0"),
        ("id,p\nn0,half\n", "row 1: the probability is 'half'"),
        ("id,p\nn0,0.5\n", "1 gold texts for 2 labels"),
        ("idd,p\nn0,0.5\n", "has no column 'id' (--id). Did you mean 'idd'?"),
        ("id,p\nn7,0.5\n", "row 1: models are shown 'n7' as an example (the codebook); it cannot be gold"),
        ("id,p\nn8,0.5\n", "row 1: the text of 'n8' is empty"),
    ],
)
def test_samples_from_elsewhere_that_cannot_be(consilience: Consilience, project: Path, rows: str, said: str) -> None:
    table = list(csv.reader((project / "notes.csv").open()))
    table[8][1], table[9][1] = "Thank you all, best day!", ""
    csv.writer((project / "notes.csv").open("w")).writerows(table)
    (project / "mine.csv").write_text(rows)
    words = ["gold", "plan", project, "--corpus", project / "notes.csv", "--id", "id", "--probability", "p"]
    answer = consilience(*words, "--drawn", project / "mine.csv")
    assert answer.code == 2
    assert said in answer.err
    assert not (project / "gold.sqlite").exists()


def test_without_fastapi_the_next_step_is_said(
    consilience: Consilience, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consilience(*plan_words(project, "--n", 12))
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "consilience.serve.coding", raising=False)
    answer = consilience("gold", "code", project)
    assert answer.code == 2
    assert "needs the package fastapi: pip install 'consilience[annotate]'" in answer.err


def test_a_port_that_is_taken(consilience: Consilience, project: Path) -> None:
    consilience(*plan_words(project, "--n", 12))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        answer = consilience("gold", "code", project, "--port", other.getsockname()[1])
    assert "is taken by another program" in answer.err
