"""Data in folders: as the Hub lays it out, as `datasets` saves it, and as people keep shards."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import DataError, first_line
from consilience.records import read_rows, write_jsonl, write_parquet

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def texts(path: Path, split: str | None = None) -> list[str]:
    return [row["text"] for _, row in read_rows(path, split=split)]


def rows(*words: str) -> list[dict[str, Any]]:
    return [{"text": word} for word in words]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Two splits in shards, as `push_to_hub` writes them."""
    folder = tmp_path / "birds"
    (folder / "data").mkdir(parents=True)
    for name, words in {"train-00000-of-00002": "ab", "train-00001-of-00002": "c", "test-00000-of-00001": "d"}.items():
        write_parquet(folder / "data" / f"{name}.parquet", rows(*words))
    return folder


def test_shards_of_a_split_in_their_order(hub: Path) -> None:
    assert texts(hub) == ["a", "b", "c"]
    assert texts(hub, "test") == ["d"]
    assert [where for where, _ in read_rows(hub)][2] == f"{hub}/data/train-00001-of-00002.parquet, row 1"


def test_the_readme_says_which_files_are_a_split(hub: Path) -> None:
    files = "\n".join(
        f"  - split: {split}\n    path: data/{name}-*" for split, name in (("sft", "train"), ("prefs", "test"))
    )
    (hub / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\nBirds.\n")
    assert texts(hub, "prefs") == ["d"]
    with pytest.raises(DataError, match=r"has several splits.* or a file: sft, prefs"):
        texts(hub)
    with pytest.raises(DataError, match=r"has no split 'pref'. Did you mean 'prefs'"):
        texts(hub, "pref")


def test_shards_of_json_lines_some_compressed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "part-1.jsonl", rows("a", "b"))
    (tmp_path / "part-2.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}\n{"text": 3\n'))
    found = read_rows(tmp_path)
    assert [next(found)[1]["text"] for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"part-2.jsonl.gz, line 2: not JSON"):
        next(found)


def test_what_datasets_saved(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(rows("a", "b", "c"))
    table.save_to_disk(tmp_path / "one", num_shards=2)
    assert texts(tmp_path / "one") == ["a", "b", "c"]
    assert [where for where, _ in read_rows(tmp_path / "one")][1] == f"{tmp_path}/one, row 2"
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "both") == ["a", "b", "c"]
    assert [*read_rows(tmp_path / "both", split="test")] == [(f"{tmp_path}/both/test, row 1", {"text": "c"})]
    with pytest.raises(DataError, match=r"has no split 'tset'. Did you mean 'test'"):
        texts(tmp_path / "both", "tset")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "Expected files ending in .parquet, .jsonl or .json"),
        ({"data.csv": "text\na\n"}, "data.csv ends in .csv; expected .jsonl"),
        ({"state.json": "{}"}, "not readable as a saved data set"),
        ({"state.json": "{", "dataset_info.json": "{"}, "not readable as a saved data set"),
    ],
)
def test_folders_that_hold_no_rows(files: dict[str, str], says: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(DataError) as refused:
        texts(folder)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_are_those_that_were_written(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    table = [{"prompt": "Hi", "chosen": turns, "rejected": None, "score": 1.5}]
    datasets.Dataset.from_list(table).save_to_disk(tmp_path / "saved")
    (tmp_path / "shards").mkdir()
    write_parquet(tmp_path / "shards" / "a.parquet", table)
    write_jsonl(tmp_path / "shards.jsonl", table)
    for place in ("saved", "shards", "shards.jsonl"):
        ((_, row),) = read_rows(tmp_path / place)
        assert row == json.loads(json.dumps(table[0]))


def test_an_error_without_words_is_called_by_its_kind() -> None:
    assert [first_line(error) for error in (OSError(), OSError("\n"), ValueError("No.\nMore"))] == ["OSError"] * 2 + [
        "No"
    ]
