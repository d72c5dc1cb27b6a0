"""Token alignment on real tokenizations: byte spans and projection, the published alignments, vocabulary mappings.

    python benchmarks/bench_alignment.py [--checks ../shared/checks/fusion] [--chats ../shared/data/chats]
        [--fuseai CLONE] [--conversations 10000] [--json]

Times are CPU seconds of one core (process time), medians of `--runs` runs after one that is not counted (it compiles).
With `--fuseai`, a clone of github.com/fanqiwan/FuseAI outside this repository, and the package `editdistance`, the
published code runs on the same texts in the same process; without, its figures are those that references/fusion.md
(section 8) quotes from another machine, and the table says so. "equal" is what checks/fusion/compare.py says about
files that we write. Vocabularies and chats are real: Mistral's and Qwen's (packages mistral-common and dashscope).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import sparse

from consilience.align import (
    VOCABULARY_MAPPINGS,
    Alignment,
    SparseRows,
    Vocabularies,
    align_spans,
    count_pairs,
    exact_matches,
    project,
)
from consilience.align.published import PublishedRows, map_rows, nearest_spelling
from consilience.chat.pieces import Style, piece_bytes

ROOT = Path(__file__).parents[1]
TEXTS = ("chat_long", "chat_mid_nopad", "chat_short_nopad", "lm_long")
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
COMPARED = 2048  # tokens: the length of the published pipeline
MODES = {"fusellm": ("hard", "soft"), "v1": ("ms", "nomatrix"), "v2": ("ms", "hard")}
NAMES = {"fusellm": "FuseLLM", "v1": "FuseChat 1.0", "v2": "FuseChat"}
# CPU seconds of the published code on another machine: warping, mapping of the distributions (fusion.md, section 8).
QUOTED = {
    ("fusellm", "hard", "lm_long"): (4.39, 0.0155),
    ("fusellm", "soft", "lm_long"): (4.28, 0.0192),
    ("v1", "ms", "chat_long"): (4.73, 0.0207),
    ("v2", "ms", "chat_long"): (4.12, 0.076),
    ("v2", "ms", "chat_mid_nopad"): (0.75, 0.036),
}
QUOTED_MATCHABLE = {"chat_long": 0.864, "chat_mid_nopad": 0.852, "chat_short_nopad": 0.837, "lm_long": 0.837}


def import_numba() -> None:
    """Before the kernels do: numba asks for the package `coverage` and would find the script of that name beside us."""
    searched = sys.path
    sys.path = [folder for folder in searched if Path(folder).absolute() != ROOT / "benchmarks"]
    try:
        importlib.import_module("numba")
    finally:
        sys.path = searched


def golden_checks(checks: Path) -> ModuleType:
    """The golden tests' module: how our functions make each reference file is said there, once."""
    import_numba()
    path = ROOT / "tests" / "golden" / "test_published_alignment.py"
    spec: Any = importlib.util.spec_from_file_location("golden_alignment", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and named tuples look themselves up
    spec.loader.exec_module(module)
    module.CHECKS = checks  # type: ignore[attr-defined]
    return module


def cpu_seconds(work: Callable[[], Any], runs: int) -> float:
    """Median CPU time of `work`, repeated within a run until the clock can resolve it."""
    work()
    took = []
    for _ in range(runs):
        began, calls = time.process_time(), 0
        while time.process_time() - began < 0.02:
            work()
            calls += 1
        took.append((time.process_time() - began) / calls)
    return median(took)


# ---- byte spans ----


class Sides(NamedTuple):
    """A text in two tokenizations: what `align_spans` is given, and the source's top-k log-probabilities, [S, K].

    Row s of the top-k is what the source says after token s: position s + 1.
    """

    pivot_starts_P: np.ndarray
    pivot_ends_P: np.ndarray
    source_starts_S: np.ndarray
    source_ends_S: np.ndarray
    topk_ids_SK: np.ndarray
    topk_logprobs_SK: np.ndarray

    def align(self) -> Alignment:
        return align_spans(self.pivot_starts_P, self.pivot_ends_P, self.source_starts_S, self.source_ends_S)

    def align_and_project(self, mapping: Any) -> SparseRows:
        """What fusion needs of a text: a distribution over pivot tokens at every matched position."""
        source_P = self.align().source_P
        rows = source_P[source_P > 0] - 1
        return project(self.topk_ids_SK[rows], self.topk_logprobs_SK[rows], mapping, keep=self.topk_ids_SK.shape[1])

    def of_length(self, tokens: int) -> Sides:
        """The text repeated, and cut after `tokens` tokens of the pivot."""
        times = -(-tokens // len(self.pivot_starts_P))
        step = max(self.pivot_ends_P[-1], self.source_ends_S[-1])

        def repeated(bytes_N: np.ndarray) -> np.ndarray:
            return (bytes_N + step * np.arange(times)[:, None]).ravel()

        pivot_starts_P, pivot_ends_P = (repeated(bytes_P)[:tokens] for bytes_P in self[:2])
        source_ends_S = repeated(self.source_ends_S)
        kept = source_ends_S <= pivot_ends_P[-1]
        return Sides(
            pivot_starts_P,
            pivot_ends_P,
            repeated(self.source_starts_S)[kept],
            source_ends_S[kept],
            np.tile(self.topk_ids_SK, (times, 1))[kept],
            np.tile(self.topk_logprobs_SK, (times, 1))[kept],
        )


def pieces_of(golden: ModuleType, name: str) -> tuple[list[bytes], list[bytes]]:
    """The bytes of every pivot and of every source token of a fixture's text."""
    tokens = golden.text(name).tokens
    pivot, source = tokens["base_raw"], tokens["blend_raw"]
    return golden._pieces(pivot, Style.SENTENCEPIECE), golden._pieces(source, Style.BYTE_LEVEL)


def sides_of(golden: ModuleType, name: str) -> Sides:
    pivot, source = pieces_of(golden, name)
    arrays = golden.text(name).arrays
    logits_SK = arrays["blend_topk_logits"].astype(np.float32)
    logprobs_SK = logits_SK - np.log(np.exp(logits_SK).sum(axis=1, keepdims=True))
    return Sides(*golden._spans(pivot), *golden._spans(source), arrays["blend_topk_indices"], logprobs_SK)


def vocabularies_of(golden: ModuleType, name: str) -> Vocabularies:
    """Real vocabularies, and what one text says about which of their tokens begin together."""
    source = [piece_bytes(token, Style.BYTE_LEVEL) for token in golden.vocabulary(_source_vocabulary(name))]
    pivot = [piece_bytes(token, Style.SENTENCEPIECE) for token in golden.vocabulary("pivot")]
    ids, alignment = golden.text(name).arrays, sides_of(golden, name).align()
    at = alignment.matched_P
    shape = len(source), len(pivot)
    counts = count_pairs(ids["blend_ids"][alignment.source_P[at]], ids["base_ids"][at], shape)
    return Vocabularies(counts, exact_matches(source, pivot), source, pivot)


def _source_vocabulary(name: str) -> str:
    return "neox50k" if name.startswith("lm_") else "qwen"


def by_length(golden: ModuleType, name: str, lengths: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """Speed over the length of a text, in pivot tokens a second."""
    text, mapping = sides_of(golden, name), VOCABULARY_MAPPINGS["statistics"](vocabularies_of(golden, name))
    found = []
    for tokens in lengths:
        sides = text.of_length(tokens)
        spans_s = cpu_seconds(sides.align, runs)
        both_s = cpu_seconds(partial(sides.align_and_project, mapping), runs)
        found.append(
            {
                "tokens": tokens,
                "source_tokens": len(sides.source_starts_S),
                "spans_s": spans_s,
                "spans_and_projection_s": both_s,
                "spans_only_tokens_per_s": tokens / spans_s,
                "tokens_per_s": tokens / both_s,
            }
        )
    return found


def quality(golden: ModuleType, name: str) -> dict[str, Any]:
    """Positions of a text against what its bytes say: a source token begins after the same bytes, or none does.

    Independent of the spans: the texts before two positions are compared themselves.
    """
    pivot, source = pieces_of(golden, name)
    begins_at = {}
    said = b""
    for position, piece in enumerate(source):
        if piece:
            begins_at[said] = position
        said += piece
    found = sides_of(golden, name).align().source_P.tolist()
    truth = []
    said = b""
    for piece in pivot:
        truth.append(begins_at.get(said, -1) if piece else -1)
        said += piece
    return {
        "text": name,
        "positions": len(pivot),
        "matchable": sum(true >= 0 for true in truth),
        "correct": sum(ours == true >= 0 for ours, true in zip(found, truth, strict=True)),
        "wrong": sum(ours >= 0 and ours != true for ours, true in zip(found, truth, strict=True)),
    }


# ---- the published alignments ----


def rows_of(golden: ModuleType, implementation: str, mode: str, name: str) -> PublishedRows:
    """The mapped distributions of a text by our functions, from a warping that is already known."""
    arrays = golden.text(name).arrays
    own_ids = arrays["base_ids"]
    if implementation == "v2":
        own_ids = np.append(own_ids[1:], own_ids[-1])  # FuseChat falls back on the next token
    return map_rows(
        golden._choices(implementation, mode, name),
        own_ids,
        arrays["blend_topk_indices"],
        arrays["blend_topk_logits"],
        golden._pivot_ids(implementation, mode),
    )


def published_alignments(
    golden: ModuleType, names: Sequence[str], fuseai: Path | None, runs: int, reference_runs: int
) -> list[dict[str, Any]]:
    """Every published way through every text it was made for: ours beside the published code's time."""
    found = []
    for implementation, modes in MODES.items():
        texts = [name for name in names if name.startswith("lm_") == (implementation == "fusellm")]
        for mode in modes:
            for name in texts:
                ours = {
                    # Its cache would make the warping free.
                    "warping_s": cpu_seconds(partial(golden.warping.__wrapped__, implementation, name), runs),
                    "mapping_s": cpu_seconds(partial(rows_of, golden, implementation, mode, name), runs),
                }
                row = {
                    "implementation": implementation,
                    "mode": mode,
                    "text": name,
                    "pivot_tokens": len(golden.text(name).arrays["base_ids"]),
                    "source_tokens": len(golden.text(name).arrays["blend_ids"]),
                    **ours,
                    "quoted_s": QUOTED.get((implementation, mode, name)),
                    "fuseai_s": None,
                    "equal_to_fuseai": None,
                }
                if fuseai is not None:
                    row |= beside_fuseai(golden, fuseai, implementation, mode, name, reference_runs)
                found.append(row)
    return found


def beside_fuseai(
    golden: ModuleType, clone: Path, implementation: str, mode: str, name: str, runs: int
) -> dict[str, Any]:
    """The published code on the same text: its median CPU seconds, and whether its rows are ours."""
    import fuseai

    text, ids = golden.text(name), golden.text(name).arrays
    pivot = fuseai.PivotTable(golden.vocabulary("pivot"), ids["base_ids"].tolist(), text.tokens["base_dec"])
    source_tokens = golden.vocabulary(_source_vocabulary(name))
    source = fuseai.SourceTable(source_tokens, ids["blend_ids"].tolist(), text.tokens["blend_dec"])
    names = fuseai.published(clone, implementation)
    settings = _settings(golden, implementation, mode)
    ran = [fuseai.run(names, pivot, source, ids, **settings) for _ in range(runs)]
    ours = rows_of(golden, implementation, mode, name)
    theirs = ran[0]
    same_rows = [len(row) for row in theirs.ids] == np.diff(ours.offsets).tolist()
    same_ids = [id_ for row in theirs.ids for id_ in row] == ours.ids_C.tolist()
    same_logits = [logit for row in theirs.logits for logit in row] == ours.logits_C.tolist()
    return {
        "fuseai_s": (median(one.warping_s for one in ran), median(one.mapping_s for one in ran)),
        "equal_to_fuseai": same_rows and same_ids and same_logits,
    }


def _settings(golden: ModuleType, implementation: str, mode: str) -> dict[str, Any]:
    """The published functions' own keywords."""
    if implementation == "fusellm":
        return {"vocab_align_type": mode, "blending_to_base_mapping": golden.mined() if mode == "soft" else None}
    settings: dict[str, Any] = {"blending_to_base": golden.source_to_pivot(implementation).tolist()}
    if mode == "ms":
        counts = golden.counts(implementation).tocoo()
        table: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for source_id, pivot_id, pairs in zip(*counts.coords, counts.data, strict=True):
            table[int(pivot_id)][int(source_id)] = float(pairs)
        settings |= {"use_token_alignment_matrix": True, "token_alignment_matrix": table}
    if implementation == "v2":
        settings["align_type"] = "hard" if mode == "hard" else "default"
    return settings


def equal_files(golden: ModuleType, names: Sequence[str]) -> dict[str, Any]:
    """The reference files of these texts as our functions make them, and what `compare.py` says about them.

    Counts and vocabulary maps are made from all the chats, and left out unless all the texts are asked for.
    """
    reference = golden.CHECKS / "reference"
    files = {path.stem for path in reference.glob("*.npz")}
    if set(names) < set(TEXTS):
        files = {name for name in files if name.endswith(tuple(names))}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in sorted(files):
            implementation, mode, text = [*name.split("_", 2), ""][:3]
            path = folder / f"{name}.npz"
            if name.endswith("_counts"):
                counts = sparse.csr_matrix(golden.counts(implementation).T.astype(np.float64))
                counts.sort_indices()
                sparse.save_npz(path, counts)
            elif name.endswith("_blending_to_base"):
                np.savez(path, blending_to_base=golden.source_to_pivot(implementation))
            else:
                warped, rows = (
                    golden.warping(implementation, text),
                    rows_of(golden, implementation, mode, text),
                )
                np.savez(
                    path,
                    map_off=warped.offsets,
                    map_val=warped.source_V,
                    dtw_cost=warped.cost,
                    al_off=rows.offsets,
                    al_logits=rows.logits_C,
                    al_indices=rows.ids_C,
                )
            # `compare.py` passes over an array that only one side has.
            with np.load(path) as ours, np.load(reference / path.name) as theirs:
                assert set(ours.files) == set(theirs.files), f"{name}: {ours.files} is not {theirs.files}"
        said = subprocess.run(
            [sys.executable, golden.CHECKS / "compare.py", folder], capture_output=True, text=True, check=False
        ).stdout.splitlines()
    compared = [line for line in said if re.match(r"\S+\.npz ", line)]
    return {
        "files": len(files),
        "equal": sum("DIFF" not in line for line in compared),
        "said": said[-1] if said else "nothing",
    }


# ---- vocabularies ----


def mined_seconds(golden: ModuleType, source_tokens: int | None) -> dict[str, Any]:
    """CPU seconds of MinED, the nearest pivot token of every source token: our mapping of bytes, then FuseLLM's rule.

    Once each: they take long enough to be measured.
    """
    source = [piece_bytes(token, Style.BYTE_LEVEL) for token in golden.vocabulary("qwen")[:source_tokens]]
    pivot = [piece_bytes(token, Style.SENTENCEPIECE) for token in golden.vocabulary("pivot")]
    uncounted = sparse.csr_array((len(source), len(pivot)), dtype=np.int64)
    known = Vocabularies(uncounted, exact_matches(source, pivot), source, pivot)
    began = time.process_time()
    mapping = VOCABULARY_MAPPINGS["edit_distance"](known)
    mapped = time.process_time()
    nearest_spelling(golden.vocabulary("qwen")[:source_tokens], golden.vocabulary("pivot"), golden.MARKS)
    return {
        "source_tokens": len(source),
        "pivot_tokens": len(pivot),
        "mapped": int(mapping.nnz),
        "cpu_s": mapped - began,
        "published_cpu_s": time.process_time() - mapped,
    }


def corpus_statistics(chats: Path, conversations: int) -> dict[str, Any] | None:
    """Counts and `statistics` mapping over real chats; None where the chats or Qwen's tokenizer are not there."""
    if not conversations or not chats.is_dir() or not importlib.util.find_spec("dashscope"):
        return None
    import corpus_statistics as corpus

    with tempfile.TemporaryDirectory() as scratch:
        return corpus.measure(chats, conversations, Path(scratch))


# ---- all of it ----


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, and the keys that are quoted."""
    golden = golden_checks(args.checks)
    first = args.texts[0]
    lengths = by_length(golden, first, args.lengths, args.runs)
    published = published_alignments(golden, args.texts, args.fuseai, args.runs, args.reference_runs)
    qualities = [quality(golden, name) for name in args.texts]
    equal = equal_files(golden, args.texts)
    mined = mined_seconds(golden, args.source_tokens)
    corpus = corpus_statistics(args.chats, args.conversations)

    compared = min(lengths, key=lambda row: abs(row["tokens"] - COMPARED))
    fusechat = [row for row in published if (row["implementation"], row["mode"], row["text"]) == ("v2", "ms", first)]
    seconds = fusechat[0] if fusechat else {"fuseai_s": None, "quoted_s": None}

    def speedups(theirs: tuple[float, float] | None) -> tuple[float | None, float | None]:
        """How many times FuseChat's speed: our kernel of its warping, and byte spans with projection."""
        if theirs is None:
            return None, None
        tokens_per_s = fusechat[0]["pivot_tokens"] / sum(theirs)
        return theirs[0] / fusechat[0]["warping_s"], compared["tokens_per_s"] / tokens_per_s

    warping_speedup, spans_speedup = speedups(seconds["fuseai_s"] or seconds["quoted_s"])
    warping_over_quoted, spans_over_quoted = speedups(seconds["quoted_s"])
    positions = sum(row["positions"] for row in qualities)
    return {
        "spans_tokens_per_s": compared["tokens_per_s"],
        "dtw_fusechat2_speedup": warping_speedup,
        "spans_speedup": spans_speedup,
        "wrong_positions": sum(row["wrong"] for row in qualities),
        "matched_share": sum(row["correct"] for row in qualities) / positions,
        "equal_reference_files": equal["equal"],
        "statistics_peak_mb": corpus and corpus["counted"]["peak_mb"],
        "reference": "FuseAI, this run" if args.fuseai else "quoted, other machine",
        "dtw_fusechat2_speedup_over_quoted": warping_over_quoted,
        "spans_speedup_over_quoted": spans_over_quoted,
        "reference_files": equal["files"],
        "compare_py": equal["said"],
        "mined_cpu_s": mined["cpu_s"],
        "runs": args.runs,
        "by_length": lengths,
        "published": published,
        "quality": qualities,
        "mined": mined,
        "statistics": corpus,
    }


def print_tables(found: dict[str, Any], console: Console) -> None:
    lengths = Table("pivot tokens", "spans ms", "with projection ms", "tokens/s", title="Byte spans and projection")
    for row in found["by_length"]:
        lengths.add_row(
            f"{row['tokens']:,}",
            f"{1e3 * row['spans_s']:.2f}",
            f"{1e3 * row['spans_and_projection_s']:.2f}",
            f"{row['tokens_per_s']:,.0f}",
        )
    console.print(lengths)
    for speedup, whose in (
        ("spans_speedup", found["reference"]),
        ("spans_speedup_over_quoted", "quoted, other machine"),
    ):
        if found[speedup] is not None:
            console.print(f"{found[speedup]:,.0f} times FuseChat's tokens/s at about {COMPARED:,} ({whose})")

    published = Table(
        *("method", "text", "tokens", "ours ms", "FuseAI s", "ratio", "quoted s", "ratio"),
        *("mapping ms", "FuseAI ms", "equal"),
        title="Published alignments: warping, then mapping of the distributions (quoted: other machine)",
    )
    for row in found["published"]:
        theirs, quoted = row["fuseai_s"], row["quoted_s"]
        published.add_row(
            f"{NAMES[row['implementation']]} {row['mode']}",
            row["text"],
            f"{row['pivot_tokens']} x {row['source_tokens']}",
            f"{1e3 * row['warping_s']:.1f}",
            f"{theirs[0]:.2f}" if theirs else "",
            f"{theirs[0] / row['warping_s']:.0f}" if theirs else "",
            f"{quoted[0]:.2f}" if quoted else "",
            f"{quoted[0] / row['warping_s']:.0f}" if quoted else "",
            f"{1e3 * row['mapping_s']:.1f}",
            f"{1e3 * theirs[1]:.1f}" if theirs else "",
            {None: "", True: "yes", False: "no"}[row["equal_to_fuseai"]],
        )
    console.print(published)
    console.print(
        f"reference files equal: {found['equal_reference_files']} of {found['reference_files']}; "
        f"compare.py: {found['compare_py']}\n"
    )

    qualities = Table("text", "positions", "matchable", "correct", "wrong", "fusion.md", title="Byte spans: positions")
    for row in found["quality"]:
        qualities.add_row(
            row["text"],
            str(row["positions"]),
            f"{row['matchable']} ({row['matchable'] / row['positions']:.1%})",
            str(row["correct"]),
            str(row["wrong"]),
            f"{QUOTED_MATCHABLE[row['text']]:.1%}",
        )
    console.print(qualities)

    mined, corpus = found["mined"], found["statistics"]
    sizes = f"{mined['source_tokens']:,} source tokens on {mined['pivot_tokens']:,}"
    console.print(
        f"edit_distance mapping (MinED) of {sizes}: {mined['cpu_s']:.1f} CPU s, "
        f"FuseLLM's rule to the letter {mined['published_cpu_s']:.1f}"
    )
    if corpus is None:
        console.print("statistics mapping: not run (needs --chats and the package dashscope)")
        return
    texts, counted = corpus["corpus"], corpus["counted"]
    source, pivot = counted["vocabularies"]
    console.print(
        f"statistics mapping, {source:,} source tokens on {pivot:,}, over {texts['conversations']:,} chats "
        f"({texts['distinct']:,} different, {texts['set_aside']} set aside; {texts['pivot_tokens']:,} pivot tokens): "
        f"{counted['cpu_s']:.1f} CPU s in {counted['wall_s']:.1f} s; peak {counted['peak_mb']:.0f} MB resident, "
        f"{counted['peak_anonymous_mb']:.0f} MB anonymous; tokenization before it {texts['cpu_s'] / 60:.1f} CPU min "
        f"in {texts['wall_s'] / 60:.1f} min"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / "shared"
    parser.add_argument("--checks", type=Path, default=shared / "checks" / "fusion")
    parser.add_argument("--chats", type=Path, default=shared / "data" / "chats")
    parser.add_argument("--fuseai", type=Path, help="a clone of github.com/fanqiwan/FuseAI (needs editdistance)")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="fixtures; the first is timed")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS), help="pivot tokens")
    parser.add_argument("--conversations", type=int, default=10_000, help="0: no statistics mapping")
    parser.add_argument("--source-tokens", type=int, help="MinED for only so many of the source's tokens")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--reference-runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    if not (args.checks / "fixtures").is_dir():
        parser.error(f"no fixtures in {args.checks}; give their folder with --checks")
    if args.fuseai is not None and not importlib.util.find_spec("editdistance"):
        parser.error("--fuseai needs editdistance: pip install --target FOLDER editdistance, then PYTHONPATH=FOLDER")
    if args.fuseai is not None and not args.fuseai.is_dir():
        parser.error(f"no clone of FuseAI in {args.fuseai}")
    found = measure(args)
    print_tables(found, Console(width=140))
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
