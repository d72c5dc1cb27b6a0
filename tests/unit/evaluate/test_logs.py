"""Every known format, written by hand from its documentation, read score by score."""

from __future__ import annotations

import gzip
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import ConfigError, DataError
from consilience.evaluate.logs import KINDS, Log, Status, match, names_of, printable, read_log
from consilience.evaluate.logs.matching import chosen_metric

Row = Mapping[str, Any]


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(log: Log) -> list[tuple[str, str, str, float | None, str]]:
    """(model, metric, item, value or None, status)"""
    return [
        (s.model, s.metric, s.item, None if math.isnan(s.value) else s.value, s.status.name.lower()) for s in log.scores
    ]


def lm_eval(doc_id: int, **more: Any) -> Row:
    row = {
        "doc_id": doc_id,
        "doc": {"question": f"{doc_id} + 1?", "subject": "sums" if doc_id % 2 else "words"},
        "target": str(doc_id + 1),
        "arguments": {"gen_args_0": {"arg_0": "Q: ...", "arg_1": {"until": ["\n"]}}},
        "resps": [["the answer"]],
        "filtered_resps": ["the answer"],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": f"{doc_id:08x}" + "f" * 56,
        "prompt_hash": "0" * 64,
        "target_hash": "0" * 64,
    }
    return row | more


def test_lm_eval_model_is_the_folder_and_filters_make_metrics(tmp_path: Path) -> None:
    rows = [
        lm_eval(i, filter=name, metrics=["exact_match"], exact_match=value)
        for name, values in (("strict-match", (0.0, 1.0)), ("flexible-extract", (1.0, 1.0)))
        for i, value in enumerate(values)
    ]
    log = read_log(write(tmp_path / "org__model-7b" / "samples_gsm8k_2026-01-16T16-02-26.648276.jsonl", rows))
    assert told(log) == [
        ("org/model-7b", "exact_match,strict-match", "0#00000000", 0.0, "scored"),
        ("org/model-7b", "exact_match,strict-match", "1#00000001", 1.0, "scored"),
        ("org/model-7b", "exact_match,flexible-extract", "0#00000000", 1.0, "scored"),
        ("org/model-7b", "exact_match,flexible-extract", "1#00000001", 1.0, "scored"),
    ]
    assert log.metrics["exact_match,strict-match"].scale == (0, 1)


def test_lm_eval_booleans_lists_of_them_and_metrics_of_the_whole_corpus(tmp_path: Path) -> None:
    metrics = ["prompt_level_strict_acc", "inst_level_strict_acc", "bleu", "f1"]
    row = lm_eval(
        0,
        metrics=metrics,
        prompt_level_strict_acc=False,
        inst_level_strict_acc=[True, False, True],
        bleu=["gold", "reply"],
        f1=float("nan"),
    )
    log = read_log(write(tmp_path / "ifeval.jsonl", [row]))
    found = {score.metric: score for score in log.scores}
    assert found["prompt_level_strict_acc"].value == 0.0
    assert found["inst_level_strict_acc"].value == pytest.approx(2 / 3)
    assert found["inst_level_strict_acc"].weight == 3
    assert found["f1"].status == Status.UNSCORED
    assert "bleu" not in found
    assert any("bleu" in note for note in log.notes)
    with pytest.raises(DataError, match=r"no metric with a number per item; there are: f1"):
        read_log(write(tmp_path / "ner.jsonl", [lm_eval(0, metrics=["f1"], f1=["LOC: x", [""]])]))


def test_lm_eval_of_before_filters_and_a_field_to_cluster_by(tmp_path: Path) -> None:
    old = {key: value for key, value in lm_eval(3, acc=1.0, acc_norm=0.0).items() if key not in ("filter", "metrics")}
    log = read_log(write(tmp_path / "old.jsonl", [old]), cluster="doc.subject")
    assert [(s.metric, s.value, s.cluster) for s in log.scores] == [("acc", 1.0, "sums"), ("acc_norm", 0.0, "sums")]
    with pytest.raises(DataError, match=r"line 1: no field 'doc.topic' to cluster by; there are question, subject"):
        read_log(tmp_path / "old.jsonl", cluster="doc.topic")


def test_a_folder_of_tasks(tmp_path: Path) -> None:
    for task in ("arc", "piqa"):
        write(tmp_path / "m" / f"samples_{task}_2026-01-16T16-02-26.1.jsonl", [lm_eval(0, acc=1.0)])
    log = read_log(tmp_path / "m")
    assert [(s.item, s.category) for s in log.scores] == [("arc/0#00000000", "arc"), ("piqa/0#00000000", "piqa")]
    write(tmp_path / "m" / "samples_arc_2026-02-16T16-02-26.1.jsonl", [lm_eval(0, acc=1.0)])
    with pytest.raises(DataError, match="two logs of 'arc'"):
        read_log(tmp_path / "m")
    with pytest.raises(DataError, match="holds none of"):
        read_log(tmp_path)


INSPECT = {
    "version": 2,
    "status": "success",
    "eval": {"task": "sums", "model": "ollama/llama3.1", "dataset": {"name": "sums", "samples": 6}},
}


def inspect_sample(id_: int | str, value: Any, epoch: int = 1, **more: Any) -> Row:
    scores = {} if value is ... else {"match": {"value": value, "answer": "No"}}
    return {
        "id": id_,
        "epoch": epoch,
        "input": "?",
        "target": "Yes",
        "scores": scores,
        "metadata": {"topic": "x"},
    } | more


SAMPLES = [
    inspect_sample(1, "C"),
    inspect_sample(1, "I", epoch=2),
    inspect_sample("two", "P"),
    inspect_sample(3, "N"),
    inspect_sample(4, 0.25),
    inspect_sample(5, float("nan")),
    inspect_sample(6, ..., error={"message": "time-out", "traceback": ""}),
]
EXPECTED = [
    ("1", "1", 1.0, Status.SCORED),
    ("1", "2", 0.0, Status.SCORED),
    ("two", "1", 0.5, Status.SCORED),
    ("3", "1", 0.0, Status.UNREADABLE),
    ("4", "1", 0.25, Status.SCORED),
    ("5", "1", None, Status.UNSCORED),
    ("6", "1", None, Status.ERROR),
]


def inspect_told(log: Log) -> list[tuple[str, str, float | None, Status]]:
    return [(s.item, s.sample, None if math.isnan(s.value) else s.value, s.status) for s in log.scores]


def test_inspect_json(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(INSPECT | {"samples": SAMPLES}))
    log = read_log(path, cluster="metadata.topic")
    assert inspect_told(log) == EXPECTED
    assert log.metrics["match"].scale is None  # there is a 0.25 and a NaN: a scorer with numbers of its own
    path.write_text(json.dumps(INSPECT | {"samples": SAMPLES[:4]}))
    assert read_log(path).metrics["match"].scale == (0, 1)
    assert {(s.model, s.metric, s.cluster) for s in log.scores} == {("ollama/llama3.1", "match", "x")}


def archive(path: Path, members: Mapping[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, value in members.items():
            made.writestr(name, json.dumps(value))
    return path


@pytest.mark.parametrize(
    "layout",
    [
        {"_journal/start.json": INSPECT, "summaries.json": SAMPLES, "header.json": INSPECT},
        {"start.json": INSPECT, "summaries/1.json": SAMPLES[:4], "summaries/2.json": SAMPLES[4:]},
        {"header.json": INSPECT, **{f"samples/{i}_epoch_1.json": row for i, row in enumerate(SAMPLES)}},
    ],
    ids=["finished", "stopped", "samples only"],
)
def test_inspect_eval(tmp_path: Path, layout: Mapping[str, Any]) -> None:
    assert inspect_told(read_log(archive(tmp_path / "log.eval", layout))) == EXPECTED


def test_inspect_eval_packed_with_zstandard(tmp_path: Path) -> None:
    # Python writes no zstandard before 3.14: members are stored packed, and their method set to 93 in both headers.
    import pyarrow

    path = tmp_path / "log.eval"
    texts = {"header.json": json.dumps(INSPECT).encode(), "summaries.json": json.dumps(SAMPLES).encode()}
    packed = {name: pyarrow.compress(text, codec="zstd", asbytes=True) for name, text in texts.items()}
    with zipfile.ZipFile(path, "w") as made:
        for name, body in packed.items():
            made.writestr(name, body)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as made:
        starts, sizes = [info.header_offset for info in made.infolist()], [len(text) for text in texts.values()]
    directory = [at for at in range(len(raw)) if raw[at : at + 4] == b"PK\x01\x02"]
    for local, central, size in zip(starts, directory, sizes):
        raw[local + 8 : local + 10] = raw[central + 10 : central + 12] = (93).to_bytes(2, "little")
        raw[local + 22 : local + 26] = raw[central + 24 : central + 28] = size.to_bytes(4, "little")
    path.write_bytes(raw)
    assert inspect_told(read_log(path)) == EXPECTED
    at = starts[1] + 60  # inside the packed summaries
    raw[at : at + 20] = bytes(20)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="damaged log"):
        read_log(path)


def test_inspect_logs_that_are_unfinished_damaged_or_something_else(tmp_path: Path) -> None:
    header = INSPECT | {"status": "cancelled"}
    log = read_log(archive(tmp_path / "a.eval", {"header.json": header, "summaries.json": SAMPLES[:1]}))
    assert log.notes == ["the log of ollama/llama3.1 has the status cancelled."]
    with pytest.raises(DataError, match=r"without header.json"):
        read_log(archive(tmp_path / "b.eval", {"x.json": {}}))
    (tmp_path / "c.eval").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="damaged log"):
        read_log(tmp_path / "c.eval")
    (tmp_path / "d.json").write_text(json.dumps(INSPECT | {"status": "error"}))
    with pytest.raises(DataError, match="no scores; its status is error"):
        read_log(tmp_path / "d.json")


def test_alpaca_eval(tmp_path: Path) -> None:
    preferences = [1.25, 2.0, 0, None, 3]
    rows = [
        {
            "instruction": f"Say {i}.",
            "generator_1": "base",
            "output_1": "a",
            "generator_2": "mine",
            "output_2": "b",
            "dataset": "koala",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": preference,
        }
        for i, preference in enumerate(preferences)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    log = read_log(tmp_path / "annotations.json")
    metric = "win rate against base, percent"
    values = [(25.0, "scored"), (100.0, "scored"), (50.0, "scored"), (None, "unparsed"), (None, "out_of_range")]
    assert told(log) == [("mine", metric, f"Say {i}.", *value) for i, value in enumerate(values)]
    assert log.judged == "weighted_alpaca_eval_gpt4_turbo"


def rating(question: int, turn: int, score: float, **more: Any) -> Row:
    judge = ["gpt-4", "single-v1"]
    return {"question_id": question, "model": "m", "choice_id": 0, "judge": judge, "turn": turn, "score": score} | more


def test_mt_bench_ratings_statuses_and_categories(tmp_path: Path) -> None:
    rows = [rating(81, 1, 8), rating(81, 2, -1), rating(160, 1, 75), rating(7, 1, 9, category="own")]
    log = read_log(write(tmp_path / "gpt-4_single.jsonl", rows))
    assert [(s.item, s.status, s.cluster, s.category) for s in log.scores] == [
        ("81, turn 1", Status.SCORED, "81", "writing"),
        ("81, turn 2", Status.UNPARSED, "81", "writing"),
        ("160, turn 1", Status.OUT_OF_RANGE, "160", "humanities"),
        ("7, turn 1", Status.SCORED, "7", "own"),
    ]
    assert [math.isnan(s.value) for s in log.scores] == [False, True, True, False]


def battle(question: int, one: str, other: str, first: str, second: str) -> Row:
    pair = {"question_id": question, "model_1": one, "model_2": other, "turn": 1, "judge": ["gpt-4", "pair-v2"]}
    return pair | {"g1_winner": first, "g2_winner": second}


def test_mt_bench_pairs_against_a_baseline_and_alone(tmp_path: Path) -> None:
    rows = [battle(81, "base", "x", "model_1", "model_2"), battle(81, "y", "base", "model_1", "tie")]
    log = read_log(write(tmp_path / "pairs.jsonl", rows))
    assert told(log) == [
        ("x", "win rate against base, percent", "81, turn 1", 50.0, "scored"),
        ("y", "win rate against base, percent", "81, turn 1", 75.0, "scored"),
    ]
    alone = read_log(write(tmp_path / "pair.jsonl", [battle(81, "x", "y", "model_1", "error")]))
    assert [row[3:] for row in told(alone)] == [(None, "unparsed"), (None, "unparsed")]
    ring = [battle(81, *pair, "tie", "tie") for pair in ("ab", "bc", "ca")]
    with pytest.raises(DataError, match="battles among 3 models"):
        read_log(write(tmp_path / "ring.jsonl", ring))


def test_our_own_answers_and_likelihood(tmp_path: Path) -> None:
    outcomes = ["correct", "wrong", "unreadable", "cut off", "not asked"]
    rows = [{"id": str(i), "group": "g", "reply": "r", "answer": "a", "outcome": o} for i, o in enumerate(outcomes)]
    log = read_log(write(tmp_path / "evaluate" / "fused" / "task-sums.jsonl", rows))
    assert {(s.model, s.metric) for s in log.scores} == {("fused", "accuracy")}
    # The run's own report divides the correct ones by all questions.
    assert [s.value for s in log.scores] == [1, 0, 0, 0, 0]
    assert len({s.status for s in log.scores}) == 4
    chats = [
        {"id": "1", "group": "", "opening": "o", "nats": 30.0, "bytes": 60, "tokens": 9, "status": "scored"},
        {"id": "2", "group": "", "opening": "o", "nats": 0.0, "bytes": 0, "tokens": 0, "status": "truncated"},
    ]
    likelihood = read_log(write(tmp_path / "evaluate" / "pivot" / "likelihood.jsonl", chats))
    assert told(likelihood)[0] == ("pivot", "nats per byte", "1", 0.5, "scored")
    assert (likelihood.scores[0].weight, likelihood.scores[0].cluster) == (60, "o")
    assert likelihood.scores[1].status == Status.UNSCORED
    assert likelihood.metrics["nats per byte"].lower_is_better


def test_tables_of_any_delimiter(tmp_path: Path) -> None:
    for name, text in {
        "a.csv": "item,model,score,cluster\n1,m,0.5,x\n2,m,,x\n3,m,yes,y\n4,m,TRUE,y\n",
        "b.csv": "\ufeffitem;model;score;cluster\r\n1;m;0,5;x\r\n2;m;NaN;x\r\n3;m;yes;y\r\n4;m;true;y\r\n",
        "c.tsv": "item\tmodel\tscore\tcluster\n1\tm\t0.5\tx\n2\tm\tNA\tx\n3\tm\tyes\ty\n4\tm\tTrue\ty\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        log = read_log(tmp_path / name)
        values = [(0.5, "scored"), (None, "unscored"), (None, "unparsed"), (1.0, "scored")]
        assert told(log) == [("m", "score", f"{i}", *value) for i, value in enumerate(values, start=1)]
        assert [s.cluster for s in log.scores] == list("xxyy")
    with gzip.open(tmp_path / "d.csv.gz", "wt") as file:
        file.write("item,score\n1,2\n")
    assert told(read_log(tmp_path / "d.csv.gz")) == [("d", "score", "1", 2.0, "scored")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "question,points\n1,2\n", "no log of a known kind; its first record has question, points"),
        ("a.csv", "item,score\n1,2,3\n", "line 2: 3 columns, expected 2"),
        ("a.csv", "item,score,score\n1,2,3\n", "'score' twice"),
        ("a.csv", "item,score\n,2\n", "line 2: expected an 'item' and a 'score'"),
        ("a.csv", "item,score\n", "holds no scores"),
        ("a.json", "[1, 2]", "item 1: got int"),
        ("a.json", "{", "line 1: not JSON"),
        ("a.json", '"x"', "holds a str"),
        ("a.jsonl", "\xff", "not readable as UTF-8|not JSON"),
        ("a.txt", "x", "no log of a known kind. Known"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=says):
        read_log(tmp_path / name)


def test_an_unknown_format_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        read_log(write(tmp_path / "x.jsonl", [{"prompt": "?", "grade": 3}]))
    assert all(kind in str(refused.value) for kind in KINDS)


def table(path: Path, rows: Sequence[tuple[Any, ...]], head: str = "item,model,score") -> Log:
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return read_log(path)


def test_duplicates_count_once_and_are_counted(tmp_path: Path) -> None:
    rows = [(1, "a", 3), (1, "a", 3), (1, "a", 5), (2, "a", ""), (2, "a", ""), (1, "b", 1), (2, "b", 2)]
    matched = match({"t": table(tmp_path / "t.csv", rows)}, metric="score")
    assert matched.values_MN[0].tolist()[0] == 3
    assert matched.statuses["a"] == {
        Status.SCORED: 1,
        Status.DUPLICATE: 2,
        Status.CONTRADICTION: 1,
        Status.UNSCORED: 1,
    }


def test_samples_of_an_item_are_averaged(tmp_path: Path) -> None:
    rows = [(1, "a", 3, 1), (1, "a", 5, 2), (1, "a", "", 3), (1, "b", 1, 1)]
    matched = match({"t": table(tmp_path / "t.csv", rows, "item,model,score,sample")}, metric="score")
    assert matched.values_MN[:, 0].tolist() == [4, 1]
    assert matched.samples_MN[:, 0].tolist() == [2, 1]


def test_too_few_shared_items_are_refused_with_examples_unless_asked(tmp_path: Path) -> None:
    rows = [*((f"q{i}", "a", i) for i in range(10)), *((f"q{i + 7}", "b", i) for i in range(10))]
    logs = {"t": table(tmp_path / "t.csv", rows)}
    with pytest.raises(DataError) as refused:
        match(logs, metric="score")
    assert "a and b share 3 of 10 and 10 items, 30 % of the smaller; expected 80 %." in str(refused.value)
    assert "only in a: 'q0', 'q1', 'q2', ...; only in b: 'q10', 'q11', 'q12', ..." in str(refused.value)
    assert "--min-shared 0.3" in str(refused.value)
    matched = match(logs, metric="score", min_shared=0.3)
    assert matched.statuses["a"][Status.MISSING] == 7
    nothing = {"t": table(tmp_path / "u.csv", [("x", "a", 1), ("y", "b", 1)])}
    with pytest.raises(DataError, match="share 0 of 1 and 1"):
        match(nothing, metric="score", min_shared=0)


def test_a_smaller_file_of_the_same_items_is_no_mismatch(tmp_path: Path) -> None:
    rows = [*((i, "a", i) for i in range(100)), *((i, "b", i) for i in range(10))]
    matched = match({"t": table(tmp_path / "t.csv", rows)}, metric="score")
    assert matched.statuses["b"][Status.MISSING] == 90


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only 'a'"):
        match({"t": table(tmp_path / "t.csv", [(1, "a", 1), (2, "a", 1)])}, metric="score")
    with pytest.raises(DataError, match="a has no score on any of its 2 items: 2 not scored"):
        match(
            {"t": table(tmp_path / "t.csv", [(1, "a", "nan"), (2, "a", ""), (1, "b", 1), (2, "b", 1)])}, metric="score"
        )
    rows = [(1, "a", 1, "x"), (1, "b", 1, "y")]
    with pytest.raises(DataError, match="item '1' is of cluster 'x', but of 'y' under b"):
        match({"t": table(tmp_path / "t.csv", rows, "item,model,score,cluster")}, metric="score")


def test_names_and_metrics_across_files(tmp_path: Path) -> None:
    rows = [{"item": 1, "model": "m", "score": 1, "metric": name} for name in ("acc,strict", "acc,loose", "f1")]
    logs = {name: read_log(write(tmp_path / f"{name}.jsonl", rows)) for name in ("one", "two")}
    assert [*names_of(logs).values()] == ["m (one)", "m (two)"]
    assert chosen_metric(logs, None) == "acc,strict"
    assert chosen_metric(logs, "f1") == "f1"
    with pytest.raises(ConfigError, match="under several filters: acc,strict; acc,loose"):
        chosen_metric(logs, "acc")
    with pytest.raises(ConfigError, match="There are: acc,loose, acc,strict, f1"):
        chosen_metric(logs, "f2")
    other = {"one": logs["one"], "three": table(tmp_path / "v.csv", [(1, "m", 1)])}
    with pytest.raises(DataError, match="no metric in common"):
        chosen_metric(other, None)


def test_text_that_a_terminal_would_obey_is_spelt_out() -> None:
    assert printable("\x1b[31mred\u202e") == "\\x1b[31mred\\u202e"
    assert printable("Zürich 京") == "Zürich 京"
