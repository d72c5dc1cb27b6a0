"""What comparing, length control, the bootstrap and sampling take: CPU seconds, and ratios to a floor in the same run.

    python benchmarks/bench_evaluate.py [--items 14000] [--rounds 3] [--json]

Compare: two synthetic lm-evaluation-harness logs and two CSV files of so many items, the command with all its
imports; the floor reads and parses the same lines. Length control: 805 judged replies and 1,610 rows of gamed
baselines; beside it scikit-learn's fit of the same objective, and its cross-validation over ten penalties, as
alpaca_eval runs it. Bootstrap: 10,000 draws of 805 clusters; beside it a loop over draws in numpy. Sampling: a tiny
random model; beside it transformers' own `generate` on the same batches. The best of the rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from consilience.stats import GamedBaselines, bootstrap_draws, length_controlled_win_rate


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of this process, the least of the rounds; a first call, which imports, does not count."""
    least = float("inf")
    work()
    for _ in range(rounds):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return least


def command_seconds(words: list[str], rounds: int) -> float:
    """CPU seconds of a command, the least of the rounds."""
    least = float("inf")
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        least = min(least, used)
    return least


def compare(items: int, rounds: int) -> dict[str, float]:
    """`consilience compare` on two logs of lm-evaluation-harness' shape, and on two CSV files."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        paths: dict[str, list[str]] = {"jsonl": [], "csv": []}
        for model in ("one", "other"):
            right = rng.random(items) < 0.6
            where = folder / model
            where.mkdir()
            path = where / "samples_made_2026-01-01T00-00-00.000000.jsonl"
            padding = "a question of some length, as they are. " * 20
            with path.open("w") as file:
                for i in range(items):
                    doc = {"question": padding, "choices": ["a", "b", "c", "d"], "answer": i % 4}
                    said = [[f"{-x:.6f}", "False"] for x in rng.random(4)]
                    row = {"doc_id": i, "doc": doc, "target": str(i % 4), "arguments": [[padding, " a"]] * 4}
                    row |= {"resps": [[one] for one in said], "filtered_resps": said, "doc_hash": f"{i:064x}"}
                    file.write(json.dumps(row | {"metrics": ["acc"], "acc": float(right[i])}) + "\n")
            paths["jsonl"].append(str(path))
            table = folder / f"{model}.csv"
            rows = "".join(f"{i},{float(right[i])}\n" for i in range(items))
            table.write_text(f"item,score\n{rows}")
            paths["csv"].append(str(table))
        console = [sys.executable, "-m", "consilience.cli", "compare"]
        parse = "import sys, json\nfor path in sys.argv[1:]:\n    for line in open(path): json.loads(line)"
        return {
            "compare_logs": command_seconds([*console, *paths["jsonl"]], rounds),
            "parse_logs": command_seconds([sys.executable, "-c", parse, *paths["jsonl"]], rounds),
            "compare_csv": command_seconds([*console, *paths["csv"]], rounds),
        }


def length_control(rounds: int) -> dict[str, float]:
    """One model's fit."""
    rng = np.random.default_rng(1)
    n = 805
    names = [str(i) for i in range(n)]
    difficulty, gaps = rng.normal(-0.06, 1.5, n), rng.normal(-300, 900, n)
    wins = 1 / (1 + np.exp(-(-1.0 - 0.8 * np.tanh(gaps / 900) + 0.9 * difficulty + rng.normal(0, 1, n))))
    gamed_gaps = np.concatenate([rng.normal(0.8, 0.5, n), rng.normal(-0.8, 0.5, n)])
    gamed_wins = rng.random(2 * n)
    gamed = GamedBaselines(gamed_wins, gamed_gaps, names * 2)
    known = dict(zip(names, difficulty))
    found = {
        "length_control": seconds(
            lambda: length_controlled_win_rate(wins, gaps, names, difficulty=known, gamed=gamed), rounds
        )
    }
    import warnings

    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import GroupKFold

    warnings.filterwarnings("ignore")
    candidate = np.column_stack([np.tanh(gaps / gaps.std(ddof=1)), difficulty, np.ones(n)])
    fixed = np.column_stack([np.tanh(gamed_gaps), np.tile(difficulty, 2), np.zeros(2 * n)])
    x = np.vstack([candidate, fixed])
    w, p = np.concatenate([np.ones(n), np.full(2 * n, 0.1)]), np.concatenate([wins, gamed_wins])
    twice, y = np.vstack([x, x]), np.repeat([1, 0], len(x))
    weights, rows = np.concatenate([w * p, w * (1 - p)]), np.tile(np.arange(len(x)), 2)
    plain = {"penalty": "l1", "solver": "liblinear", "fit_intercept": False, "random_state": 123}
    one = LogisticRegression(C=10 ** (4 / 9), **plain)
    found["sklearn_fit"] = seconds(lambda: one.fit(twice, y, sample_weight=weights), rounds)
    folds = [*GroupKFold(5).split(twice, y, rows)]
    several = LogisticRegressionCV(Cs=10, cv=folds, scoring="neg_log_loss", **plain)
    found["sklearn_cross_validation"] = seconds(lambda: several.fit(twice, y, sample_weight=weights), rounds)
    return found


def bootstrap(rounds: int) -> dict[str, float]:
    """10,000 draws of the clustered mean of 805 clusters of two."""
    rng = np.random.default_rng(2)
    x = rng.random((805, 2))
    parts = np.column_stack([x.sum(1), np.full(805, 2.0)])

    def ours() -> Any:
        return bootstrap_draws(lambda s: s[..., 0] / s[..., 1], parts, rng=np.random.default_rng(0), draws=10_000)

    def loop() -> None:
        drawn = np.random.default_rng(0)
        for _ in range(10_000):
            x[drawn.integers(0, 805, 805)].mean()

    return {"bootstrap": seconds(ours, rounds), "bootstrap_loop": seconds(loop, rounds)}


def sampling(rounds: int) -> dict[str, float]:
    """64 prompts of like length, 48 new tokens each, drawn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from consilience.models import ChatModel, Sampling, sample_replies

    torch.manual_seed(0)
    torch.set_num_threads(1)
    vocabulary = 2000
    shape = {"hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, eos_token_id=None, **shape)).eval()
    model.generation_config.eos_token_id = None

    class Tokenizer:
        pad_token_id, eos_token_id = 0, None

        def decode(self, ids: Any, **_: Any) -> str:
            return " ".join(map(str, ids))

    prompts = [np.random.default_rng(i).integers(1, vocabulary, 24).astype(np.int32) for i in range(64)]
    drawn = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=48)
    chat_model = ChatModel("random", model, Tokenizer())
    together = torch.tensor(np.stack(prompts).astype(np.int64))

    def plain() -> None:
        with torch.inference_mode():
            model.generate(together, attention_mask=torch.ones_like(together), max_new_tokens=48, do_sample=True,
                           temperature=0.8, top_p=0.95, top_k=0, pad_token_id=0)  # fmt: skip

    return {
        "sample": seconds(lambda: [*sample_replies(chat_model, prompts, drawn)], rounds),
        "generate": seconds(plain, rounds),
    }


RATIOS = {
    "compare_logs / parse_logs": ("compare_logs", "parse_logs"),
    "sklearn_fit / length_control": ("sklearn_fit", "length_control"),
    "sklearn_cross_validation / length_control": ("sklearn_cross_validation", "length_control"),
    "bootstrap_loop / bootstrap": ("bootstrap_loop", "bootstrap"),
    "sample / generate": ("sample", "generate"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=14_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    found = compare(args.items, args.rounds) | length_control(args.rounds) | bootstrap(args.rounds)
    found |= sampling(args.rounds)
    for name, value in found.items():
        print(f"{name:<28}{value:8.3f} s")
    ratios = {name: found[over] / found[under] for name, (over, under) in RATIOS.items()}
    for name, value in ratios.items():
        print(f"{name:<44}{value:8.2f}")
    if args.json:
        print(json.dumps({"seconds": found, "ratios": ratios, "items": args.items, "rounds": args.rounds}))


if __name__ == "__main__":
    main()
