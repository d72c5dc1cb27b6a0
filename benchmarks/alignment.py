"""Sequence alignment on real tokenizations: byte spans against the published dynamic time warpings (our kernel).

    python benchmarks/alignment.py [--checks ../shared/checks/fusion] [--runs 9] [--json]

Times are CPU milliseconds of one core, medians of `--runs` runs after one that is not counted (it compiles). Spans
start from byte offsets, as tokenizers give them; warpings from token strings. "published" is what FuseAI's own Python
took for the same alignment on another machine (references/fusion.md, section 8), not run here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from consilience.align import SEQUENCE_ALIGNMENTS, Marks, align_spans
from consilience.chat.pieces import Style, piece_bytes

TEXTS = {
    "chat_long": ("fusechat1", "fusechat2"),
    "chat_mid_nopad": ("fusechat1", "fusechat2"),
    "chat_short_nopad": ("fusechat1", "fusechat2"),
    "lm_long": ("fusellm",),
}
PUBLISHED_SECONDS = {
    ("chat_long", "fusechat1"): 4.73,
    ("chat_long", "fusechat2"): 4.12,
    ("chat_mid_nopad", "fusechat2"): 0.75,
    ("lm_long", "fusellm"): 4.39,
}
MARKS = Marks(pivot="▁", source="Ġ")


def spans_of(tokens: list[str], style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Byte spans of a text's tokens; control tokens fill one byte, and sentencepiece's blank before a turn none."""
    lengths, begins = [], style is Style.SENTENCEPIECE
    for token in tokens:
        closes = token in ("<|end_of_turn|>", "<|im_end|>")
        piece = b"" if token == "<s>" else b"." if closes else piece_bytes(token, style)
        lengths.append(len(piece.removeprefix(b" ") if begins else piece))
        begins = style is Style.SENTENCEPIECE and (closes or not piece)
    ends = np.cumsum(lengths)
    return np.append(0, ends[:-1]), ends


def milliseconds(work: Callable[[], Any], runs: int) -> float:
    """Median CPU time of `work`, repeated within a run until the clock can resolve it."""
    work()
    took = []
    for _ in range(runs):
        began, calls = time.process_time(), 0
        while time.process_time() - began < 0.02:
            work()
            calls += 1
        took.append((time.process_time() - began) / calls)
    return 1e3 * median(took)


def measure(checks: Path, name: str, method: str, runs: int) -> dict[str, Any]:
    """Both ways through one text."""
    tokens = json.loads(gzip.decompress((checks / "fixtures" / f"{name}.tokens.json.gz").read_bytes()))
    pivot, source = tokens["base_raw"], tokens["blend_raw"]
    spans = (*spans_of(pivot, Style.SENTENCEPIECE), *spans_of(source, Style.BYTE_LEVEL))
    spelled = (tokens["base_dec"], tokens["blend_dec"]) if method == "fusechat2" else (pivot, source)
    spans_ms = milliseconds(partial(align_spans, *spans), runs)
    warping_ms = milliseconds(partial(SEQUENCE_ALIGNMENTS[method], *spelled, MARKS), runs)
    published_s = PUBLISHED_SECONDS.get((name, method))
    return {
        "text": name,
        "method": method,
        "pivot_tokens": len(pivot),
        "source_tokens": len(source),
        "matched_share": float(align_spans(*spans).matched_P.mean()),
        "spans_ms": spans_ms,
        "spans_tokens_per_s": 1e3 * len(pivot) / spans_ms,
        "warping_ms": warping_ms,
        "warping_over_spans": warping_ms / spans_ms,
        "published_s": published_s,
        "published_over_warping": published_s and 1e3 * published_s / warping_ms,
        "published_over_spans": published_s and 1e3 * published_s / spans_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).parents[2] / "shared" / "checks" / "fusion"
    parser.add_argument("--checks", type=Path, default=beside)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    if not (args.checks / "fixtures").is_dir():
        parser.error(f"no fixtures in {args.checks}; give their folder with --checks")

    found = [measure(args.checks, name, method, args.runs) for name in TEXTS for method in TEXTS[name]]
    table = Table("text", "pivot x source", "matched", "spans ms", "method", "warping ms", "/ spans", "published s")
    for row in found:
        table.add_row(
            row["text"],
            f"{row['pivot_tokens']} x {row['source_tokens']}",
            f"{row['matched_share']:.1%}",
            f"{row['spans_ms']:.2f}",
            row["method"],
            f"{row['warping_ms']:.1f}",
            f"{row['warping_over_spans']:.0f}",
            "" if row["published_s"] is None else f"{row['published_s']:.2f}",
        )
    Console(width=120).print(table)
    if args.json:
        print(json.dumps({"runs": args.runs, "texts": found}))


if __name__ == "__main__":
    main()
