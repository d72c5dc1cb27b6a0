"""One of the processes that `test_two_processes` starts: it trains, whole or spread over them, on a CPU.

    python -m torch.distributed.run --nproc-per-node 2 training_process.py WORLD OUT SETTINGS

SETTINGS is JSON: `train` are TrainSettings, `config` a file of recipes/accelerate, and `untied` gives the model a head
of its own. At its forward pass number `dies_at` the last process kills itself; at `spoils_at` its loss is NaN.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import yaml


def shard_on_a_cpu(config: dict[str, Any]) -> None:
    """What `accelerate launch --config_file` says to its processes, and FSDP2 without a GPU.

    accelerate shards where it has chosen a GPU's backend. torch's `fully_shard` itself runs on a CPU, under gloo.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    if config["distributed_type"] == "FSDP":
        os.environ |= {name.upper(): str(value) for name, value in config["fsdp_config"].items()}
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
        torch.distributed.init_process_group("gloo")
        PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
        return
    settings = {name.removeprefix("zero3_"): value for name, value in config["deepspeed_config"].items()}
    os.environ |= {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(settings["zero_stage"]),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": str(settings["init_flag"]).lower(),
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": str(settings["save_16bit_model"]).lower(),
        "DS_ACCELERATOR": "cpu",
    }


def main(world: Path, out: Path, settings: dict[str, Any]) -> None:
    if "config" in settings:
        shard_on_a_cpu(yaml.safe_load(Path(settings["config"]).read_text()))
    from transformers import AutoModelForCausalLM

    from consilience.chat import render
    from consilience.errors import BackendError
    from consilience.fuse import SupervisedExamples, collate, fusion_objective
    from consilience.models import load_tokenizer
    from consilience.records import read_conversations
    from consilience.train import TrainSettings, train

    rank = int(os.environ.get("RANK", "0"))
    last = rank == int(os.environ.get("WORLD_SIZE", "1")) - 1
    tokenizer = load_tokenizer(world / "pivot")
    chats = read_conversations(world / "chats.jsonl")[:8]
    examples = SupervisedExamples([chat.id for chat in chats], [render(tokenizer, chat.messages) for chat in chats])
    objective = fusion_objective("ce")
    steps = 0

    def watched(model: Any, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if last and steps == settings.get("dies_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        found = objective(model, batch)
        if last and steps == settings.get("spoils_at"):
            found["loss"] = found["loss"] * float("nan")
        return found

    torch.manual_seed(0)
    untied = {"tie_word_embeddings": False} if settings.get("untied") else {}  # the head is drawn, the same everywhere
    model = AutoModelForCausalLM.from_pretrained(world / "pivot", **untied).train()
    try:
        trained, curve = train(
            model, examples, collate, watched, TrainSettings(**settings["train"]), out / "train", seed=0
        )
    except BackendError as error:
        print(f"consilience: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    if rank == 0:
        trained.save_pretrained(out / "model")
        (out / "curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
