"""lm-evaluation-harness and inspect_ai run for real on two tiny models of ours, on questions of ours; their logs kept.

    python benchmarks/peer_logs.py --lm-eval LM_EVAL/bin/python --inspect INSPECT/bin/python [--work DIR] [--json]

Makes the models and the questions, runs both harnesses on them (each in an environment of its own, offline), copies the
logs to tests/integration/peer_logs, and asks `consilience evaluate` the same multiple-choice questions: the last lines
say on how many items its verdicts are lm-evaluation-harness' own. The logs in the repository were made with
lm-eval 0.4.13 and inspect-ai 0.3.285.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from consilience.pipelines.evaluate import evaluate_recipe
from consilience.pipelines.tiny import make_tiny_world
from consilience.records import read_rows

KEPT = Path(__file__).parents[1] / "tests" / "integration" / "peer_logs"
MODELS = ("pivot", "sums")
ITEMS = 30
NUMBERS = ("four", "nine", "twelve", "fifteen", "nineteen", "twenty two", "twenty seven", "thirty six")

LM_EVAL_CHOICE = {
    "task": "tiny_choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "choice.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": " ",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
}
LM_EVAL_WRITE = {
    "task": "tiny_write",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "write.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["</s>", "<|end|>"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True},
    ],
}
INSPECT_TASK = """
import json
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import exact, includes
from inspect_ai.solver import generate

@task
def tiny_sums():
    rows = [json.loads(line) for line in open("write.jsonl")]
    samples = [Sample(id=row["id"], input=row["question"], target=row["answer"], metadata={"wording": row["wording"]})
               for row in rows]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=[includes(), exact()])
"""


def make(work: Path) -> None:
    """Models, questions and the harnesses' task files in `work`."""
    make_tiny_world(work / "world", seed=7, steps_scale=0.6)
    for name in MODELS:
        shutil.copytree(work / "world" / name, work / name, dirs_exist_ok=True)
    rows = [row for _, row in read_rows(work / "world" / "tasks" / "sums.jsonl")][:ITEMS]
    asked = [(row["id"], row["messages"][0]["content"], row["answer"]) for row in rows]
    written = [
        {"id": id_, "question": question, "answer": answer, "wording": question.split()[0]}
        for id_, question, answer in asked
    ]
    chosen = []
    for place, (id_, question, answer) in enumerate(asked):
        others = [number for number in NUMBERS if number != answer]
        choices = [others[(place + step) % len(others)] for step in range(3)]
        choices.insert(place % 4, answer)
        chosen.append({"id": id_, "question": question, "choices": choices, "answer": place % 4})
    for name, of in (("write", written), ("choice", chosen)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    for task in (LM_EVAL_CHOICE, LM_EVAL_WRITE):
        (work / f"{task['task']}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    (work / "tiny_sums.py").write_text(INSPECT_TASK)


INSPECT_SAYS = """
import json, sys
from inspect_ai.log import read_eval_log
scores = read_eval_log(sys.argv[1], header_only=True).results.scores
print(json.dumps({score.name: {name: metric.value for name, metric in score.metrics.items()} for score in scores}))
"""


def run(words: list[str], work: Path) -> str:
    """A harness in `work`, offline, one thread; what it printed."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(words, cwd=work, env=kept | quiet, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{' '.join(words[:4])} stopped:\n{found.stdout[-2000:]}\n{found.stderr[-3000:]}")
    return found.stdout


def with_lm_eval(python: str, work: Path) -> None:
    """Both tasks on both models; their samples into KEPT/lm_eval/MODEL, what the harness makes of them beside it."""
    said: dict[str, Any] = {}
    for name in MODELS:
        arguments = f"pretrained={name},dtype=float32"
        words = [
            python,
            "-m",
            "lm_eval",
            "--model",
            "hf",
            "--model_args",
            arguments,
            "--tasks",
            "tiny_choice,tiny_write",
        ]
        words += [
            "--include_path",
            ".",
            "--device",
            "cpu",
            "--batch_size",
            "8",
            "--log_samples",
            "--output_path",
            "lm_eval",
        ]
        run(words, work)
        shutil.rmtree(KEPT / "lm_eval" / name, ignore_errors=True)
        (KEPT / "lm_eval" / name).mkdir(parents=True)
        for samples in (work / "lm_eval" / name).glob("samples_*.jsonl"):
            shutil.copy(samples, KEPT / "lm_eval" / name / samples.name)
        results = json.loads(max((work / "lm_eval" / name).glob("results_*.json")).read_text())["results"]
        said[name] = {
            task: {metric: value for metric, value in found.items() if isinstance(value, float)}
            for task, found in results.items()
        }
    (KEPT / "lm_eval.json").write_text(json.dumps(said, indent=1) + "\n")


def with_inspect(python: str, work: Path) -> None:
    """One task on both models, two epochs at a temperature; the `.eval` files into KEPT/inspect."""
    shutil.rmtree(KEPT / "inspect", ignore_errors=True)
    (KEPT / "inspect").mkdir(parents=True)
    said: dict[str, Any] = {}
    for name in MODELS:
        words = [str(Path(python).with_name("inspect")), "eval", "tiny_sums.py", "--model", f"hf/{name}"]
        words += [
            "-M",
            f"model_path={name}",
            "-M",
            "device=cpu",
            "--epochs",
            "2",
            "--temperature",
            "0.7",
            "--seed",
            "1",
        ]
        words += [
            "--max-tokens",
            "12",
            "--max-connections",
            "1",
            "--log-dir",
            f"inspect/{name}",
            "--log-format",
            "eval",
        ]
        run([*words, "--display", "none", "--no-log-realtime"], work)
        [log] = (work / "inspect" / name).glob("*.eval")
        shutil.copy(log, KEPT / "inspect" / f"{name}.eval")
        said[name] = json.loads(run([python, "-c", INSPECT_SAYS, str(log.relative_to(work))], work).splitlines()[-1])
    (KEPT / "inspect.json").write_text(json.dumps(said, indent=1) + "\n")


def agreement(work: Path) -> dict[str, Any]:
    """Items on which our likelihoods choose as lm-evaluation-harness' do, of all, by model and metric."""
    recipe = {
        "models": {name: name for name in MODELS},
        "tasks": {"tiny": {"kind": "choice", "path": "choice.jsonl", "chat": False, "prompt": "{question}"}},
        "threads": 1,
    }
    (work / "evaluate.yaml").write_text(yaml.safe_dump(recipe))
    evaluate_recipe(work / "evaluate.yaml", work / "run")
    ours = {
        (row["model"], row["item"], row["metric"]): row["value"] for _, row in read_rows(work / "run" / "scores.jsonl")
    }
    found: dict[str, Any] = {}
    for name in MODELS:
        [samples] = (KEPT / "lm_eval" / name).glob("samples_tiny_choice_*.jsonl")
        theirs = [row for _, row in read_rows(samples)]
        for metric in ("acc", "acc_norm"):
            alike = sum(ours[name, row["doc"]["id"], metric] == row[metric] for row in theirs)
            found[f"{name}, {metric}"] = {"alike": alike, "of": len(theirs)}
        nats = {}
        for line in (work / "run" / "answers" / "tiny" / name / "likelihoods.jsonl").read_text().splitlines():
            one = json.loads(line)
            nats[one["item"]] = one["nats"]
        apart = [
            abs(nats[row["doc"]["id"]][place] - float(said[0]))
            for row in theirs
            for place, said in enumerate(row["filtered_resps"])
        ]
        found[f"{name}, nats"] = {"largest difference": max(apart)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval", help="the python of an environment with lm-eval")
    parser.add_argument("--inspect", help="the python of an environment with inspect-ai")
    parser.add_argument("--work", type=Path, help="where models and tasks are made; made models are taken as they are")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="peer-logs-"))
    if not (work / "tiny_sums.py").is_file():
        make(work)
    if args.lm_eval:
        with_lm_eval(args.lm_eval, work)
    if args.inspect:
        with_inspect(args.inspect, work)
    found = agreement(work)
    for name, of in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in of.items()))
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
