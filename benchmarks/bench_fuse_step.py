"""One training step and one scoring pass: what fusion costs beside plain fine-tuning, in memory and in time.

    python benchmarks/bench_fuse_step.py [--vocabulary 151936] [--width 512] [--layers 4] [--tokens 4096] [--json]

Each variant runs in a process of its own on random Qwen2-like weights, in turns, `--rounds` times; the figures are
medians. Memory is the peak of anonymous memory (on a GPU: of allocated memory) during the steps, less what model,
gradients and batch hold before the first. "sft" and the fused steps take the head in blocks; "transformers" is the
model's own loss, "dense" the published formulation, which scatters the teacher's candidates into [B, T, V], "trl sft"
and "trl gold" what TRL's SFTTrainer and GOLDTrainer make of the same batch, where TRL is installed. GOLD's teacher, of
the same size and vocabulary, answers in every step; ours was asked once, before. Ratios of time are of CPU seconds, on
a GPU of seconds.

    python benchmarks/bench_fuse_step.py --size 8b --vocabulary 151936 --peak-tflops 989 --json    # an H100

on a GPU: `1b` learns whole, `8b` by LoRA, in bfloat16 with gradient checkpointing; tokens a second and MFU (6 FLOPs a
parameter and token, 4 where LoRA leaves the weights as they are; recomputation is not counted).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

SIZES = {"1b": (2048, 16, 8192), "8b": (4096, 32, 14336)}  # width, layers, width of the MLP
STEPS = ("transformers", "sft", "fused tokens", "fused hybrid", "dense", "trl sft", "trl gold")
PASSES = ("forward", "represent")
TOP_K = 10


def batch_of(args: argparse.Namespace, way: str) -> dict[str, Any]:
    """Conversations of 1,024 tokens, three quarters of them replies, with random targets of ten candidates."""
    import numpy as np

    from consilience.fuse.learn import Example, collate
    from consilience.fuse.teach import PIECES, TOKENS

    rng = np.random.default_rng(0)
    examples = []
    for number in range(max(1, args.tokens // 1024)):
        length = min(1024, args.tokens)
        position_N = np.arange(length // 4, length)
        count = len(position_N)
        fused = way.startswith("fused") or way == "dense"
        probs_NJ = rng.dirichlet(np.ones(TOP_K + 1), count)[:, :TOP_K].astype(np.float32) * fused
        hybrid = way == "fused hybrid"
        logprob_N = np.where(np.arange(count) % 4 < 2, -1.0, np.nan) if hybrid else np.full(count, np.nan)
        examples.append(
            Example(
                str(number),
                rng.integers(0, args.vocabulary, length).astype(np.int32),
                position_N,
                ids_NJ=np.argsort(rng.random((count, 64)), 1)[:, :TOP_K].astype(np.int32) * (args.vocabulary // 64),
                probs_NJ=probs_NJ,
                gold_weight_N=np.full(count, 0.9 if fused else 1.0, dtype=np.float32),
                fusion_weight_N=np.full(count, 0.1 * fused, dtype=np.float32),
                teacher_N=np.ones(count, dtype=np.int8),
                space_N=np.full(count, PIECES if hybrid else TOKENS, dtype=np.int8),
                chunk_N=(np.arange(count) // 2).astype(np.int32),
                chunk_logprob_N=logprob_N.astype(np.float32),
            )
        )
    return collate(examples)


def model_of(args: argparse.Namespace) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    width, layers, inner = SIZES.get(args.size, (args.width, args.layers, 3 * args.width))
    head = 128 if args.size else 64
    config = Qwen2Config(
        vocab_size=args.vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // head),
        num_key_value_heads=max(1, width // (4 * head if args.size else 2 * head)),
        tie_word_embeddings=args.size != "8b",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    if not args.size:
        return model.train()
    model.gradient_checkpointing_enable()
    if args.size == "8b":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model.bfloat16(), lora)
        model.enable_input_require_grads()
    return model.train()


def step_of(way: str, model: Any, args: argparse.Namespace) -> Callable[[], Any]:
    """One forward and backward pass; gradients are set to zero in place, so that they are held throughout."""
    import numpy as np
    import torch

    from consilience.align.pieces import SharedPieces
    from consilience.fuse import fusion_objective
    from consilience.fuse.teach import PIECES
    from consilience.models.packed import moved

    if way.startswith("trl"):
        return trl_step(way, model, args)
    device = next(model.parameters()).device
    batch = moved(batch_of(args, way), device)
    inputs = batch["inputs"]
    learnt_BT = batch["shift_labels"] != -100
    if way == "transformers":
        return lambda: model(**inputs, shift_labels=batch["shift_labels"], labels=batch["labels"]).loss.backward()
    if way == "dense":

        def published() -> None:
            logits_BTV = model(**inputs).logits
            target_BTV = torch.zeros_like(logits_BTV, dtype=torch.bfloat16)
            rows = torch.zeros(int(learnt_BT.sum()), args.vocabulary, dtype=torch.bfloat16, device=device)
            target_BTV[learnt_BT] = rows.scatter(1, batch["target_ids"], batch["target_probs"].bfloat16())
            fusion_BTV = torch.nn.functional.cross_entropy(
                logits_BTV.flatten(0, 1), target_BTV.flatten(0, 1).float(), reduction="none"
            )
            gold = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch["shift_labels"].flatten())
            (0.9 * gold + 0.1 * fusion_BTV[learnt_BT.flatten()].mean()).backward()

        return published
    # Pieces of three tokens each: what a finer source's vocabulary shares.
    ids = np.arange(args.vocabulary, dtype=np.int32)
    shared = SharedPieces([b"x"] * args.vocabulary, ids, ids - ids % 3)
    objective = fusion_objective("ce", {1: {PIECES: shared}}.__getitem__)
    return lambda: (objective(model, batch)["loss"] / learnt_BT.sum()).backward()


def trl_step(way: str, model: Any, args: argparse.Namespace) -> Callable[[], Any]:
    """The loss of a trainer of TRL's and its backward pass, on the batch that "sft" has."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from consilience.models.packed import moved

    words = {f"w{i}": i for i in range(16)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token="w1", eos_token="w2", unk_token="w0"
    )
    batch = moved(batch_of(args, "sft"), next(model.parameters()).device)
    ids_BT = batch["inputs"]["input_ids"]
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "bf16": False,  # see `in_bfloat16`
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "per_device_train_batch_size": len(ids_BT),
        "gradient_checkpointing": bool(args.size),
        "max_length": None,
    }
    given: dict[str, Any] = {
        "model": model,
        "train_dataset": Dataset.from_list([{"input_ids": [3, 4], "labels": [-100, 4]}]),
        "processing_class": tokenizer,
    }
    if way == "trl gold":
        from trl.experimental.gold import GOLDConfig, GOLDTrainer

        config = GOLDConfig(**settings, use_uld_loss=False)
        trainer: Any = GOLDTrainer(**given, args=config, teacher_model=model_of(args).requires_grad_(False))
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(**given, args=SFTConfig(**settings))
    inputs = {
        "input_ids": ids_BT,
        "attention_mask": batch["inputs"].get("attention_mask", torch.ones_like(ids_BT)),
        "labels": torch.nn.functional.pad(batch["shift_labels"][:, :-1], (1, 0), value=-100),
    }
    return lambda: trainer.compute_loss(model.train(), dict(inputs)).backward()


def pass_of(way: str, model: Any, args: argparse.Namespace) -> Callable[[], Any]:
    """Scoring the same batch: the bare forward pass to the logits of reply positions, or a representation of them."""
    import numpy as np
    import torch

    from consilience.models import ChatModel, score_replies
    from consilience.models.score import logits_at

    batch = batch_of(args, "sft")
    ids_BT = batch["inputs"]["input_ids"]
    length = ids_BT.shape[1]
    positions = np.arange(length // 4, length)
    ids = [row.numpy().astype(np.int32) for row in ids_BT]
    if way == "represent":
        chat_model = ChatModel("bench", model.eval(), None)
        return lambda: [*score_replies(chat_model, ids, [positions] * len(ids), top_k=TOP_K)]

    def forward() -> None:
        with torch.inference_mode():
            for row in ids_BT:  # as many at once as the representation holds
                logits_at(model.eval(), row[None], torch.ones_like(row[None]), positions - 1)

    return forward


def child(way: str, args: argparse.Namespace) -> dict[str, float]:
    """Memory above the start, in MiB, and the median seconds of a step."""
    import torch

    torch.set_num_threads(args.threads)
    model = model_of(args)
    work = (step_of if way in STEPS else pass_of)(way, model, args)
    if args.size:
        work = in_bfloat16(work)
    if way in STEPS:
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.grad = torch.zeros_like(parameter)
    cuda = torch.cuda.is_available()
    work()  # what is set up at the first call is no part of a step
    model.zero_grad(set_to_none=False)
    before = torch.cuda.memory_allocated() / 2**20 if cuda else anonymous_mb("RssAnon")
    reset_peak()
    seconds, processor = [], []
    for _ in range(args.steps):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - cpu)
        model.zero_grad(set_to_none=False)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else anonymous_mb("VmHWM")
    rest = 0.0 if cuda else anonymous_mb("RssFile")
    return {
        "extra_mb": peak - rest - before,
        "held_mb": before,
        "seconds": median(seconds),
        "cpu_seconds": median(processor),
        "cost": median(seconds if cuda else processor),
    }


def in_bfloat16(work: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    def autocast() -> Any:
        with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16):
            return work()

    return autocast


def speed(figures: dict[str, dict[str, float]], args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of every step, and their share of what the device could compute."""
    rates = {way: args.tokens / one["seconds"] for way, one in figures.items() if way in STEPS}
    found: dict[str, Any] = {"tokens_per_second": rates}
    if args.size and args.peak_tflops:
        width, layers, inner = SIZES[args.size]
        parameters = layers * (2.5 * width**2 + 3 * width * inner) + args.vocabulary * width
        per_token = (4 if args.size == "8b" else 6) * parameters
        found["mfu"] = {way: rate * per_token / args.peak_tflops / 1e12 for way, rate in rates.items()}
    return found


def anonymous_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def bytes_per_candidate(args: argparse.Namespace) -> float:
    """On disk: a stored shard of one model, less its ten-candidate-free columns, by candidate."""
    import numpy as np
    from safetensors.numpy import save_file

    count = 4096
    ids = np.zeros((count, TOP_K), dtype=np.int32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        save_file({"ids_NK": ids, "logprobs_NK": ids.astype(np.float16)}, path)
        return path.stat().st_size / (count * TOP_K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", choices=SIZES, help="a GPU's: in the place of width and layers")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bfloat16, for the MFU")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    has_trl = importlib.util.find_spec("trl") is not None
    steps = [step for step in STEPS if has_trl or not step.startswith("trl")]
    parser.add_argument("--ways", default=",".join([*steps, *PASSES]))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways.split(",")}
    for _ in range(args.rounds):
        for way, rounds in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--child", way]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rounds.append(json.loads(printed.splitlines()[-1]))
    figures = {way: {name: median(one[name] for one in rounds) for name in rounds[0]} for way, rounds in found.items()}
    table = Table("what", "above the start, MiB", "CPU s", "wall s", title=f"{args.tokens} tokens, V {args.vocabulary}")
    for way, one in figures.items():
        table.add_row(way, f"{one['extra_mb']:.0f}", f"{one['cpu_seconds']:.2f}", f"{one['seconds']:.2f}")
    Console().print(table)

    def ratio(ours: str, theirs: str, figure: str) -> float | None:
        there = ours in figures and theirs in figures
        return figures[ours][figure] / figures[theirs][figure] if there else None

    def peak_ratio(ours: str, theirs: str) -> float | None:
        if ours not in figures or theirs not in figures:
            return None
        ours_mb, theirs_mb = (figures[way]["extra_mb"] + figures[way]["held_mb"] for way in (ours, theirs))
        return ours_mb / theirs_mb

    summary = {
        "peak_ratio_vs_sft": peak_ratio("fused tokens", "sft"),
        "peak_ratio_hybrid_vs_sft": peak_ratio("fused hybrid", "sft"),
        "time_ratio_vs_sft": ratio("fused tokens", "sft", "cost"),
        "time_ratio_hybrid_vs_sft": ratio("fused hybrid", "sft", "cost"),
        "peak_ratio_vs_transformers": peak_ratio("fused tokens", "transformers"),
        "time_ratio_vs_trl_sft": ratio("fused tokens", "trl sft", "cost"),
        "time_ratio_vs_trl_gold": ratio("fused tokens", "trl gold", "cost"),
        "peak_ratio_vs_trl_sft": peak_ratio("fused tokens", "trl sft"),
        "peak_ratio_vs_trl_gold": peak_ratio("fused tokens", "trl gold"),
        "dense_memory_ratio": ratio("dense", "fused tokens", "extra_mb"),
        "represent_ratio_vs_forward": ratio("forward", "represent", "cost"),
        "bytes_per_candidate": bytes_per_candidate(args),
        **speed(figures, args),
        "figures": figures,
        "settings": {
            name: getattr(args, name) for name in ("size", "vocabulary", "width", "layers", "tokens", "threads")
        },
    }
    for name, value in summary.items():
        if isinstance(value, float):
            print(f"{name}: {value:.3f}")
    if args.json:
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
