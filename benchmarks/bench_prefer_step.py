"""What a step of DPO and of SELM costs beside TRL's DPOTrainer: the same model, batch and lengths, in one run.

    python benchmarks/bench_prefer_step.py [--json] [--vocabulary 128256] [--pairs 3] [--prompt 90] [--reply 150]

A step is the forward and backward pass of a batch of pairs; CPU seconds, the least of `--repeat`. Ours has the
reference's log-probabilities from one pass before training; its cost is counted in where we are compared with TRL's
default, which asks the reference in every step, and counted in on neither side against `precompute_ref_log_probs`.
Memory is the peak of a process over what it held before its models were made: models, gradients, activations; not the
optimizer, whose states are the same on both sides. Every variant has a process of its own in each of `--rounds`
rounds; a ratio is the median of the rounds' ratios, because a shared machine is quicker in one minute than in the next.
Steps of ours that differ by little (SELM's, and one over uneven lengths) take turns with DPO's in one process. The
third reply of SELM is neither chosen nor rejected in a third of the pairs; `selm_vs_dpo_positions` says how many more
positions these are, which cost what they cost. On a GPU, where there is one, the same by its clock and allocator.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Step = Callable[[], tuple[int, int]]
VARIANTS = ("ours", "ours_selm", "ours_reference", "trl", "trl_precomputed")
TURNS = "turns"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=90, help="tokens")
    parser.add_argument("--reply", type=int, default=150, help="tokens, with half and one and a half of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2, help="steps in a round")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--variant", choices=(*VARIANTS, TURNS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(in_turns(options) if options.variant == TURNS else measured(options)))
        return
    turns = _in_own_process(TURNS)
    rounds = [{variant: _in_own_process(variant) for variant in VARIANTS} for _ in range(options.rounds)]
    for variant in VARIANTS:
        of_variant = [found[variant] for found in rounds]
        seconds, memory, working = (_median(f[key] for f in of_variant) for key in ("seconds", "memory", "working"))
        print(
            f"{variant:18s}{seconds:8.2f} s  {memory / 2**20:8.0f} MiB peak, "
            f"{working / 2**20:6.0f} MiB without models and gradients, {of_variant[0]['positions']} positions"
        )
    of_rounds = [ratios(found) for found in rounds]
    seen = turns | {key: [r[key] for r in of_rounds] for key in of_rounds[0]}
    result = {key: _median(values) for key, values in seen.items()}
    for key, values in seen.items():
        print(f"{key:32s}{result[key]:7.3f}   of {', '.join(f'{value:.3f}' for value in values)}")
    if options.json:
        print(json.dumps(result))


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The ratios of one round, from what its variants took."""
    ours, selm, trl, precomputed = (found[variant] for variant in ("ours", "ours_selm", "trl", "trl_precomputed"))
    return {
        "selm_vs_dpo_positions": selm["positions"] / ours["positions"],
        "dpo_vs_trl_time": (ours["seconds"] + found["ours_reference"]["seconds"]) / trl["seconds"],
        "dpo_vs_trl_memory": ours["memory"] / trl["memory"],
        "dpo_vs_trl_precomputed_time": ours["seconds"] / precomputed["seconds"],
        "dpo_vs_trl_precomputed_memory": ours["memory"] / precomputed["memory"],
        "working_memory_vs_trl": ours["working"] / trl["working"],
    }


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _in_own_process(variant: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, peak memory, and the part of it that is neither model nor gradient."""
    import torch

    before: list[int] = []

    def make() -> Any:
        before.append(_memory())  # by now everything is imported
        return _random_llama(options)

    run, models = _prepared(options, make)
    for parameter in models[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    held = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
    held += sum(p.numel() * p.element_size() for p in models[0].parameters())
    tokens, positions = run()  # once, for what is allocated for good
    _reset_peak()
    seconds = [_seconds(run) for _ in range(options.repeat)]
    peak = _peak() - before[0]
    return {
        "seconds": min(seconds),
        "memory": peak,
        "working": max(peak - held, 1),
        "tokens": tokens,
        "positions": positions,
    }


def in_turns(options: argparse.Namespace) -> dict[str, list[float]]:
    """Steps of ours that differ by little, one after the other: what each takes of the time of DPO's beside it."""
    model = _random_llama(options)
    steps = [our_step(options, model), our_step(options, model, selm=True), our_step(options, model, uneven=True)]
    (tokens, _), _, (uneven_tokens, _) = [step() for step in steps]  # once, for what is allocated for good
    of_turns = [[_seconds(step) for step in steps] for _ in range(options.turns)]
    return {
        "selm_vs_dpo_time": [selm / dpo for dpo, selm, _ in of_turns],
        "uneven_vs_even_time_per_token": [(uneven / uneven_tokens) / (dpo / tokens) for dpo, _, uneven in of_turns],
    }


def _random_llama(options: argparse.Namespace) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to("cuda" if torch.cuda.is_available() else "cpu")


def _seconds(run: Step) -> float:
    """CPU seconds of a step; on a GPU its clock's."""
    import torch

    if not torch.cuda.is_available():
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def texts_of(options: argparse.Namespace, *, uneven: bool) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Prompts of one length, each with chosen, rejected and a third reply of lengths around the mean."""
    draw = np.random.default_rng(0)
    factors = np.array([0.15, 1.85] if uneven else [0.75, 1.25])
    made = []
    for i in range(options.pairs):
        lengths = (options.reply * np.roll(factors, i)).astype(int)
        ids = lambda count: draw.integers(10, options.vocabulary, count)  # noqa: E731
        made.append((ids(options.prompt), [ids(lengths[0]), ids(lengths[1]), ids(options.reply)]))
    return made


def _prepared(options: argparse.Namespace, make: Callable[[], Any]) -> tuple[Step, list[Any]]:
    """A function that does one step and says of how many real tokens and positions, and the models it holds."""
    if options.variant.startswith("trl"):
        return _trl(options, make)
    model = make()
    if options.variant == "ours_reference":
        return _reference_pass(options, model), [model]
    return our_step(options, model, selm=options.variant == "ours_selm"), [model]


def our_step(options: argparse.Namespace, model: Any, *, selm: bool = False, uneven: bool = False) -> Step:
    """A step of DPO, or of SELM, over the batch."""
    from consilience.models.packed import moved
    from consilience.prefer.learn import NO_THIRD, PairExample, collate_pairs, pair_objective
    from consilience.prefer.likelihood import reading
    from consilience.prefer.losses import LossSettings

    examples = []
    for i, read in enumerate(_read(options, uneven=uneven)):
        third = (2 if i % 3 == 0 else i % 2) if selm else NO_THIRD
        kept = tuple(read if third == 2 else read[:2])
        examples.append(PairExample(f"{i}", kept, (-100.0,) * len(kept), third))
    real = sum(len(reply.ids_T) for example in examples for reply in example.replies[:2])
    objective = pair_objective(LossSettings(name="selm" if selm else "dpo", alpha=0.001 if selm else 0.0, beta=0.01))

    def step() -> tuple[int, int]:
        with reading(model.eval(), 1 + max(example.longest for example in examples)) as packed:
            batch = moved(collate_pairs(packed=packed)(examples), next(model.parameters()).device)
            model.train()
            (objective(model, batch)["loss"] / len(examples)).backward()
        return real, batch["inputs"]["input_ids"].numel()

    return step


def _reference_pass(options: argparse.Namespace, model: Any) -> Step:
    from consilience.prefer.likelihood import score_texts

    pairs = [read[:2] for read in _read(options, uneven=False)]
    real = sum(len(reply.ids_T) for pair in pairs for reply in pair)

    def score() -> tuple[int, int]:
        for _ in score_texts(model, pairs, batch_tokens=1 << 20):
            pass
        return real, real

    return score


def _read(options: argparse.Namespace, *, uneven: bool) -> list[list[Any]]:
    """The replies of `texts_of` as the policy reads them."""
    from consilience.prefer.likelihood import ReadReply

    return [
        [ReadReply(np.concatenate([prompt, reply]).astype(np.int32), len(prompt)) for reply in replies]
        for prompt, replies in texts_of(options, uneven=uneven)
    ]


def _trl(options: argparse.Namespace, make: Callable[[], Any]) -> tuple[Step, list[Any]]:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = {f"w{i}": i for i in range(16)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token="w1", eos_token="w2", unk_token="w0"
    )
    precomputed = options.variant == "trl_precomputed"
    model = make()
    trainer = DPOTrainer(
        model=model,
        ref_model=None if precomputed else make(),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            per_device_train_batch_size=options.pairs,
            gradient_checkpointing=False,
            precompute_ref_log_probs=precomputed,
            beta=0.01,
        ),
        train_dataset=Dataset.from_list([{"prompt": "w3", "chosen": "w4", "rejected": "w5"}]),
        processing_class=tokenizer,
    )
    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for prompt, replies in texts_of(options, uneven=False):
        for name, ids in zip(columns, (prompt, *replies[:2])):
            columns[name].append(ids.tolist())
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    if precomputed:
        rows = [row | {"ref_chosen_logps": -100.0, "ref_rejected_logps": -100.0} for row in rows]
    batch = trainer.data_collator(rows)
    batch = {name: value.to(next(model.parameters()).device) for name, value in batch.items()}

    def step() -> tuple[int, int]:
        model.train()
        trainer.compute_loss(model, dict(batch)).backward()
        return int(batch["attention_mask"].sum()), batch["attention_mask"].numel()

    return step, [model] if precomputed else [model, trainer.ref_model]


def _memory() -> int:
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def _status(name: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
