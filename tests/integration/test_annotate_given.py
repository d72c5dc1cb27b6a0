"""Labels made elsewhere: a column of the data takes the model's place, and R's published example comes out of it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilience.errors import ConfigError

DATA = Path(__file__).parents[3] / "shared" / "data" / "annotation" / "dsl_examples"


def make_project(folder: Path, rows: list[dict[str, Any]], column: str, gold: str, labels: list[Any]) -> Path:
    folder.mkdir()
    with (folder / "posts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    recipe = {
        "data": {"path": "posts.csv", "text": "text"},
        "models": {"other": {"column": column}},
        "gold": {"column": gold},
        "dev": {"items": 0},
    }
    book = {"variable": "wrong", "question": "Is the county accused?", "labels": labels}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "codebook.yaml").write_text(yaml.safe_dump(book))
    return folder


def test_pan_chen_from_the_command_line(tmp_path: Path, consilience: Callable[..., Any]) -> None:
    """R's package dsl prints countyWrong -0.2617 (0.2230); a tenth of a standard error is allowed for its forest."""
    if not (DATA / "PanChen.csv.gz").is_file():
        pytest.skip("no ../shared/data/annotation/dsl_examples beside the repository")
    with gzip.open(DATA / "PanChen.csv.gz", "rt", newline="") as file:
        rows = [{"text": f"post {i}", **row} for i, row in enumerate(csv.DictReader(file))]
    labels = [{"name": "no", "code": 0}, {"name": "yes", "code": 1}]
    project = make_project(tmp_path / "p", rows, "pred_countyWrong", "countyWrong", labels)
    assert consilience("annotate", "freeze", project).code == 0
    assert consilience("annotate", "run", project).code == 0
    formula = "SendOrNot ~ wrong_yes + prefecWrong + connect2b + prevalence + regionj + groupIssue"
    answer = consilience("annotate", "estimate", project, "--formula", formula, "--json")
    assert answer.code == 0, answer.err
    found = answer.json["formulas"][formula]
    assert (found["family"], found["gold"], found["rows"]) == ("logistic", 500, 1412)
    ours = found["coefficients"]["wrong_yes"]["DSL"]
    assert ours["value"] == pytest.approx(-0.2617, abs=0.0223)
    assert ours["standard_error"] == pytest.approx(0.2230, rel=0.02)
    with (project / "dsl.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    assert sum(row["wrong_yes"] != "" for row in table) == sum(row["labelled"] == "1" for row in table) == 500
    assert {row["pred_wrong_yes"] for row in table} == {"0", "1"}
    assert float(table[0]["sample_prob"]) == pytest.approx(500 / 1412, rel=1e-6)


def test_given_labels_are_checked_like_a_models(tmp_path: Path, consilience: Callable[..., Any]) -> None:
    rows = [{"text": f"t{i}", "pred": "yes" if i % 2 else "no", "human": "yes" if i % 3 else "no"} for i in range(30)]
    rows[0]["pred"], rows[1]["pred"], rows[2]["pred"] = "", "maybe", "YES"
    project = make_project(tmp_path / "p", rows, "pred", "human", ["no", "yes"])
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"dev": {"items": 10}}))
    dev = consilience("annotate", "dev", project, "--json")
    assert dev.code == 0, dev.err
    assert [*dev.json["configurations"]] == ["other.given"]
    assert consilience("annotate", "freeze", project).code == 0
    ran = consilience("annotate", "run", project, "--json")
    assert ran.json["configurations"]["other.given"]["statuses"] == {"empty": 1, "out of set": 1, "ok": 28}
    assert consilience("annotate", "estimate", project).code == 0
    report = consilience("annotate", "report", project)
    assert report.code == 0, report.err
    assert "as they stand in column pred" in (project / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("book", "codes"),
    [
        ({"level": "ordinal", "labels": ["low", "middle", "high"]}, ["low", "middle", "high"]),
        ({"level": "multi-label", "labels": ["war", "trade"]}, ["war|trade", "trade", "(none)"]),
        ({"level": "interval", "range": [0, 10], "labels": []}, ["2", "5", "9"]),
        ({"level": "span", "labels": ["war", "trade"]}, ['[[0, 2, "war"]]', "[]", '[[0, 1, "trade"]]']),
        ({"level": "free text", "labels": []}, ["one", "two", "three"]),
    ],
)
def test_every_level_goes_from_gold_to_report(
    book: dict[str, Any], codes: list[str], tmp_path: Path, consilience: Callable[..., Any]
) -> None:
    rows = [
        {"text": f"t{i}", "pred": codes[(i + (i % 5 == 0)) % 3], "human": codes[i % 3] if i < 60 else ""}
        for i in range(150)
    ]
    project = make_project(tmp_path / "p", rows, "pred", "human", book["labels"])
    tree = yaml.safe_load((project / "codebook.yaml").read_text())
    (project / "codebook.yaml").write_text(yaml.safe_dump(tree | book))
    for verb in ("freeze", "run", "estimate", "report"):
        answer = consilience("annotate", verb, project)
        assert answer.code == 0, answer.err
    assert (project / "report" / "agreement.csv").is_file()


@pytest.mark.slow
def test_a_million_rows_stream_in_bounded_memory(tmp_path: Path) -> None:
    """What ten times the rows take more is the ids' hashes (8 bytes each), not rows."""
    import resource
    import subprocess
    import sys

    peaks = []
    for count in (100_000, 1_000_000):
        folder = tmp_path / str(count)
        rows = [{"id": "0", "text": "", "pred": "no", "human": "no"}]
        project = make_project(folder, rows, "pred", "human", ["no", "yes"])
        recipe = yaml.safe_load((project / "recipe.yaml").read_text())
        recipe |= {"data": {"path": "posts.csv", "id": "id"}, "batch_size": 4096}
        (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        with (project / "posts.csv").open("w") as file:
            file.write("id,text,pred,human\n")
            file.writelines(
                f"r{i},a text of some length number {i},{'yes' if i % 3 else 'no'},\n" for i in range(count)
            )
        for verb in ("freeze", "run"):
            subprocess.run([sys.executable, "-m", "consilience.cli", "annotate", verb, str(project)], check=True)
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
        with (project / "labelled.csv").open() as file:
            assert sum(1 for _ in file) == count + 1
    assert peaks[1] < peaks[0] + 60  # MiB; RUSAGE_CHILDREN is the largest child so far


def test_the_gold_grows_and_what_was_chosen_by_stays_aside(tmp_path: Path, consilience: Callable[..., Any]) -> None:
    """The texts that dev looked at are those in its file; another draw from more gold would make test gold of them."""
    rows = [{"text": f"t{i}", "pred": "yes" if i % 2 else "no", "human": ""} for i in range(60)]
    project = make_project(tmp_path / "p", rows, "pred", "human", ["no", "yes"])
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"dev": {"items": 10}, "gold": "gold.csv"}))

    def code(count: int) -> None:
        lines = [f"{i + 1},{'yes' if i % 3 else 'no'}" for i in range(count)]
        (project / "gold.csv").write_text("\n".join(["id,label", *lines]))

    code(30)
    assert consilience("annotate", "dev", project).code == 0
    looked_at = {json.loads(line)["id"] for line in (project / "dev" / "other.given.jsonl").read_text().splitlines()}
    code(50)
    assert consilience("annotate", "freeze", project).code == 0
    assert set(json.loads((project / "frozen.json").read_text())["dev_gold"]) == looked_at
    assert consilience("annotate", "run", project).code == 0
    assert consilience("annotate", "estimate", project, "--json").json["gold"] == 50 - 10


def test_clusters_that_were_named_later_count(tmp_path: Path, consilience: Callable[..., Any]) -> None:
    rows = [
        {"text": f"t{i}", "author": f"a{i % 7}", "pred": "yes" if i % 2 else "no", "human": "yes" if i % 3 else "no"}
        for i in range(40)
    ]
    project = make_project(tmp_path / "p", rows, "pred", "human", ["no", "yes"])
    for verb in ("freeze", "run", "estimate"):
        assert consilience("annotate", verb, project).code == 0
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["data"]["cluster"] = "author"
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert consilience("annotate", "estimate", project, "--json").json["clusters"] == 7


def test_a_servers_price_pace_and_key_are_no_part_of_what_is_frozen(
    tmp_path: Path, consilience: Callable[..., Any]
) -> None:
    from consilience.annotate.freeze import read_frozen
    from consilience.annotate.recipe import read_project

    rows = [{"text": f"t{i}", "human": "yes" if i % 3 else "no"} for i in range(40)]
    project = make_project(tmp_path / "p", rows, "pred", "human", ["no", "yes"])
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["strategies"] = {"zero_shot": {"answer": "free"}}

    def served(**settings: Any) -> None:
        endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m"} | settings
        recipe["models"] = {"other": {"endpoint": endpoint}}
        (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    served(budget={"tokens": 9}, concurrency=1, retries=0)
    assert consilience("annotate", "freeze", project).code == 0
    price = {"input": 1, "output": 2}
    served(budget={"money": 9}, price=price, timeout_s=5, requests_per_minute=3, api_key_env="A_KEY")
    read_frozen(read_project(project))
    served(model="another")
    with pytest.raises(ConfigError, match="was 'm', now 'another'"):
        read_frozen(read_project(project))


def test_labels_and_estimates_are_of_these_texts_and_this_gold(tmp_path: Path, consilience: Callable[..., Any]) -> None:
    rows = [{"text": f"t{i}", "pred": "yes" if i % 2 else "no", "human": "yes" if i % 3 else "no"} for i in range(30)]
    project = make_project(tmp_path / "p", rows, "pred", "human", ["no", "yes"])
    for verb in ("freeze", "run", "estimate", "report"):
        assert consilience("annotate", verb, project).code == 0

    def write(changed: list[dict[str, Any]]) -> None:
        with (project / "posts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*changed[0]])
            writer.writeheader()
            writer.writerows(changed)

    write([row | {"year": i} for i, row in enumerate(rows)])  # a covariate more
    stale = consilience("annotate", "report", project)
    assert stale.code == 2
    assert "was made of other data than there are now" in stale.err
    assert consilience("annotate", "estimate", project, "--by", "year").code == 0
    assert consilience("annotate", "report", project).code == 0

    write([row | {"human": "no"} for row in rows])
    stale = consilience("annotate", "report", project)
    assert stale.code == 2
    assert "was made of other data and gold than there are now" in stale.err

    for other in (rows[::-1], [row | {"text": "another"} for row in rows]):
        write(other)
        refused = consilience("annotate", "estimate", project)
        assert refused.code == 2
        assert "the texts of posts.csv are not those that were coded: another text or another order" in refused.err
