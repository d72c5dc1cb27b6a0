"""Writes tests/golden/published_search.json: replies of the published search, for `mode published` to reproduce.

    PYTHONPATH=PACKAGES python benchmarks/make_published_search.py CLONE

Run it where transformers is 4.41 (see published_search.py): then nothing of the published code is patched.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import transformers

from published_search import COMMIT, Published, models_of

TINY: dict[str, Any] = {"vocabulary": 40, "large": [2, 32], "small": [1, 16], "prompt": 6, "ends": True, "spread": 0.25}


def main() -> None:
    published = Published(Path(sys.argv[1]))
    shapes = itertools.cycle([(4, 4, 5), (2, 4, 8), (2, 2, 30), (1, 6, None), (3, 2, 1), (1, 1, 4)])
    cases = []
    for number, (width, successors, chunk) in zip(range(36), shapes):
        kind = ("gpt2", "llama")[number % 2]
        job = TINY | {"kind": kind, "model_seed": number, "seed": 100 + number, "other_tokenizer": number % 3 == 2}
        job |= {
            "width": width,
            "successors": successors,
            "chunk": chunk,
            "max_new_tokens": 20,
            "top_k": (50, 8)[number % 2],
        }
        (large, tuned, untuned), tokenizer, guide_tokenizer = models_of(job)
        reply = published.reply(large, tuned, untuned, tokenizer, guide_tokenizer, job)
        cases.append(job | {"reply": reply})
    made_by = {"commit": COMMIT, "transformers": transformers.__version__, "cases": cases}
    path = Path(__file__).parents[1] / "tests" / "golden" / "published_search.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(json.dumps(made_by | {"cases": []})[:-2] + "\n" + lines + "\n]}\n")


if __name__ == "__main__":
    main()
