"""The alignment benchmark at a small size, and that what it checks can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CHECKS = ROOT.parent / "shared" / "checks" / "fusion"
CHATS = ROOT.parent / "shared" / "data" / "chats"
SHORT = "chat_short_nopad"
needs_checks = pytest.mark.skipif(
    not (CHECKS / "reference").is_dir(), reason="no ../shared/checks/fusion beside the repo"
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_alignment

    return bench_alignment


@needs_checks
def test_the_whole_at_a_small_size() -> None:
    size = f"--texts {SHORT} --lengths 64 256 --runs 1 --source-tokens 300 --conversations 0".split()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "bench_alignment.py", "--checks", CHECKS, *size, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong_positions"] == 0
    assert found["matched_share"] == pytest.approx(0.837, abs=0.0005)  # fusion.md, section 8
    assert found["equal_reference_files"] == found["reference_files"] == 4  # FuseChat's two versions, two modes each
    assert found["compare_py"] == "ALL EQUAL"
    assert found["reference"] == "quoted, other machine"
    assert found["statistics_peak_mb"] is None
    assert found["dtw_fusechat2_speedup"] is found["spans_speedup"] is None  # nobody measured this text
    assert [row["tokens"] for row in found["by_length"]] == [64, 256]
    assert found["spans_tokens_per_s"] > 0


@needs_checks
def test_shifted_spans_are_counted_as_wrong(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = benchmark.golden_checks(CHECKS)
    exact = benchmark.align_spans

    def shifted(*spans: np.ndarray) -> Any:
        alignment = exact(*spans)
        return alignment._replace(source_P=np.where(alignment.matched_P, alignment.source_P + 1, -1))

    monkeypatch.setattr(benchmark, "align_spans", shifted)
    found = benchmark.quality(golden, SHORT)
    assert (found["correct"], found["wrong"]) == (0, found["matchable"])


@needs_checks
def test_another_logit_is_a_file_that_is_not_equal(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = benchmark.golden_checks(CHECKS)
    rows_of = benchmark.rows_of

    def nearly(golden: ModuleType, implementation: str, mode: str, name: str) -> Any:
        rows = rows_of(golden, implementation, mode, name)
        return rows._replace(logits_C=np.nextafter(rows.logits_C, 0)) if implementation == "v1" else rows

    monkeypatch.setattr(benchmark, "rows_of", nearly)
    found = benchmark.equal_files(golden, [SHORT])
    assert (found["files"], found["equal"], found["said"]) == (4, 2, "2 of 24 arrays differ")


def test_repeated_texts_stay_aligned(benchmark: ModuleType) -> None:
    # Five bytes: the pivot reads 2 + 1 + 2 of them, the source 1 + 2 + 1 + 1; tokens begin together at bytes 0 and 3.
    ids_SK, logprobs_SK = np.arange(4)[:, None], np.zeros((4, 1))
    text = benchmark.Sides(*map(np.array, ([0, 2, 3], [2, 3, 5], [0, 1, 3, 4], [1, 3, 4, 5])), ids_SK, logprobs_SK)
    longer = text.of_length(7)  # two whole texts and the first two bytes of a third
    assert longer.pivot_ends_P[-1] == 12
    assert longer.align().source_P.tolist() == [0, -1, 2, 4, -1, 6, 8]
    assert longer.topk_ids_SK.ravel().tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]  # the token at bytes 11 to 13 is cut off


def test_counts_of_a_corpus_by_hand(benchmark: ModuleType, tmp_path: Path) -> None:
    import corpus_statistics

    (tmp_path / "vocabularies.pickle").write_bytes(
        pickle.dumps({"source": [b"a", b"ab", b"b"], "pivot": [b"ab", b"c"]})
    )
    # Twice "ab" + "c": the pivot reads ab|c, the source a|b once and ab once; "c" is no token of the source's.
    for number, source in enumerate([([0, 2], [0, 1], [1, 2]), ([1], [0], [2])]):
        ids, starts, ends = (np.array(column, dtype=np.int64) for column in source)
        np.savez(
            tmp_path / f"shard-{number:05d}.npz",
            **{"pivot_ids": np.array([0, 1]), "pivot_starts": np.array([0, 2]), "pivot_ends": np.array([2, 3])},
            **{"source_ids": ids, "source_starts": starts, "source_ends": ends},
        )
    counted = corpus_statistics.count(tmp_path)
    assert counted.vocabularies == (3, 2)
    assert counted.distinct_pairs == 2  # a with ab, ab with ab
    assert counted.mapped_tokens == 2  # b begins where no pivot token does
    assert counted.matched_share == 2 / 4
    assert counted.peak_mb >= counted.before_mb > 0


PUBLISHED = """
import a_package_that_is_not_here

def dtw(series_1, series_2, norm_func=np.linalg.norm):
    return norm_func(series_1[0], series_2[0])

def transform_step_logits(base: transformers.not_here, blending, vocab, base_ids, blending_ids, logits, indices, scale):
    distance = dtw(blending.convert_ids_to_tokens(blending_ids), [base.decode(base_ids)], lambda a, b: len(a) - len(b))
    return [[logits[0][0] * scale]], [[distance, vocab["x"]]]
"""


def test_published_functions_run_on_tables(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clone with a stand-in: only its functions are taken, and it may import and annotate what is not installed."""
    import fuseai

    monkeypatch.setitem(sys.modules, "editdistance", SimpleNamespace())
    (tmp_path / "code.py").write_text(PUBLISHED)
    made = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "commit", "-q", "-m", "stand-in"]
    for command in (["init", "-q"], ["add", "code.py"], made):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setitem(fuseai.ORIGINS, "v2", ("HEAD", "code.py"))
    pivot, source = fuseai.PivotTable(["<s>", "x"], [1], ["x"]), fuseai.SourceTable(["abcd"], [0], ["abcd"])
    arrays = {"base_ids": [1], "blend_ids": [0], "blend_topk_logits": [[2.0]], "blend_topk_indices": [[0]]}
    ran = fuseai.run(
        fuseai.published(tmp_path, "v2"), pivot, source, {k: np.array(v) for k, v in arrays.items()}, scale=3
    )
    assert (ran.logits, ran.ids) == ([[6.0]], [[3, 1]])
    assert ran.warping_s >= 0
    assert ran.mapping_s >= 0


@pytest.mark.slow
@pytest.mark.skipif(not CHATS.is_dir(), reason="the real chats are not there: ../shared/data/chats")
@pytest.mark.skipif(
    not importlib.util.find_spec("dashscope"), reason="Qwen's tokenizer: pip install dashscope --no-deps"
)
def test_a_corpus_of_real_chats(benchmark: ModuleType, tmp_path: Path) -> None:
    import corpus_statistics

    found = corpus_statistics.measure(CHATS, 40, tmp_path)
    assert found["corpus"]["conversations"] == found["corpus"]["distinct"] == 40
    assert not found["counted"]["torch_loaded"]
    # With byte-exact spans real English matches at four of five positions and better; see docs/papers.md.
    assert found["counted"]["matched_share"] > 0.6
