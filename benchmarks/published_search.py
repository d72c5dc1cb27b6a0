"""The published code of weak-to-strong search, run from a clone of github.com/ZHZisZZ/weak-to-strong-search.

    PYTHONPATH=PACKAGES python benchmarks/published_search.py CLONE JOBS.json    replies, CPU seconds, counts

Nothing of theirs is kept here: its package is unpacked beside the run. It was written for transformers 4.41, and runs
as it is where PACKAGES holds that (pip install --target PACKAGES --no-deps transformers==4.41.2 tokenizers==0.19.1
huggingface_hub==0.23.5). On transformers 5 three methods that were renamed or dropped are put back.

The models of a job are random, from a seed by numpy, so that both versions of transformers make the same ones, and
their tokenizers are of words: "w17" is token 17.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

COMMIT = "4767768"
END = 1


def words_of(vocabulary: int) -> Any:
    """Word i is token i; 0 is what it does not know, 1 ends a text."""
    tokens = {"<unk>": 0, "</s>": END} | {f"w{i}": i for i in range(2, vocabulary)}
    return _tokenizer(models.WordLevel(tokens, unk_token="<unk>"), pre_tokenizers.WhitespaceSplit())


def characters() -> Any:
    """A token for each character of such words: another tokenizer for the guide. 12 tokens and two of control."""
    tokens = {"<unk>": 0, "</s>": END} | {character: i for i, character in enumerate(" w0123456789", start=2)}
    split = pre_tokenizers.Split(Regex("."), "isolated")
    return _tokenizer(models.WordLevel(tokens, unk_token="<unk>"), split, decoders.Fuse())


def _tokenizer(model: Any, split: Any, decoder: Any = None) -> Any:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    if decoder is not None:
        tokenizer.decoder = decoder
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def random_model(
    kind: str, *, layers: int, size: int, vocabulary: int, seed: int, ends: bool, spread: float = 0.02
) -> Any:
    """A GPT-2 or a Llama whose weights numpy drew; with `ends` its token 1 ends a text, without nothing does."""
    special = {"bos_token_id": None, "eos_token_id": END if ends else None}
    config: Any
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=size, n_layer=layers, n_head=8, n_positions=2048, **special
        )
    else:
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=size,
            intermediate_size=size * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=8,
            tie_word_embeddings=True,
            **special,
        )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            drawn = rng.standard_normal(weight.shape).astype(np.float32) * spread
            weight.copy_(torch.from_numpy(drawn + (1 if weight.ndim == 1 and "bias" not in name else 0)))
    model.generation_config.eos_token_id = END if ends else None
    model.generation_config.pad_token_id = END
    return model


@dataclass
class Counter:
    """Positions that a model was given, padding included."""

    positions: int = 0


@contextmanager
def counted(model: Any) -> Iterator[Counter]:
    """Counts what `model` reads while the block runs."""
    counter = Counter()

    def count(module: Any, args: Any, kwargs: Any) -> None:
        counter.positions += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counter
    finally:
        hook.remove()


class Published:
    """The published search and scorer; prompts are plain text."""

    def __init__(self, clone: Path) -> None:
        archive = subprocess.run(["git", "-C", str(clone), "archive", COMMIT, "src"], capture_output=True, check=True)
        self.folder = tempfile.TemporaryDirectory()
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(self.folder.name, filter="data")
        sys.path.insert(0, self.folder.name)
        from src.inference_time_alignment.decoders.cbs import CBSPosthocGenerationMixin
        from src.inference_time_alignment.scorers import ImplicitValueScorer

        class OnTransformers5(CBSPosthocGenerationMixin):  # type: ignore[misc]
            def _get_initial_cache_position(self, input_ids: Any, model_kwargs: Any) -> Any:
                return model_kwargs | {"past_key_values": None}

            def prepare_inputs_for_generation(self, input_ids: Any, **model_kwargs: Any) -> Any:
                length = None if model_kwargs["past_key_values"] is None else 1
                return self.base.prepare_inputs_for_generation(input_ids, next_sequence_length=length, **model_kwargs)

            def _reorder_cache(self, past_key_values: Any, beam_idx: Any) -> Any:
                past_key_values.reorder_cache(beam_idx)
                return past_key_values

        recent = int(transformers.__version__.partition(".")[0]) >= 5
        self._search = OnTransformers5 if recent else CBSPosthocGenerationMixin
        self._scorer = ImplicitValueScorer

    def reply(
        self, large: Any, tuned: Any, untuned: Any, tokenizer: Any, guide_tokenizer: Any, settings: Mapping[str, Any]
    ) -> list[int]:
        """The ids of the reply to the job's prompt, with its end-of-text token and the padding behind it."""
        prompt = prompt_of(settings)
        scorer = self._scorer(tuned, untuned, guide_tokenizer).set_raw_prompt(prompt)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        torch.manual_seed(settings["seed"])
        found = self._search(large, tokenizer).search(
            ids["input_ids"],
            scorer,
            w=settings["width"],
            k=settings["successors"],
            l=settings["chunk"] or 2**63 - 1,
            max_new_tokens=settings["max_new_tokens"],
            temperature=0.7,
            top_k=settings.get("top_k", 50),
            top_p=1.0,
            split_by_prompt_text=False,
            attention_mask=ids["attention_mask"],
            use_cache=True,
        )
        reply: list[int] = found[0, ids["input_ids"].shape[1] :].tolist()
        return reply


def models_of(job: Mapping[str, Any]) -> tuple[list[Any], Any, Any]:
    """Large, tuned and untuned model of a job, the large one's tokenizer, the pair's."""
    tokenizer = words_of(job["vocabulary"])
    guide_tokenizer = characters() if job.get("other_tokenizer") else tokenizer
    vocabularies = [job["vocabulary"]] + 2 * [14 if job.get("other_tokenizer") else job["vocabulary"]]
    shapes = [job["large"], job["small"], job["small"]]
    made = [
        random_model(
            job["kind"],
            layers=layers,
            size=size,
            vocabulary=vocabulary,
            seed=job["model_seed"] + number,
            ends=job["ends"],
            spread=job.get("spread", 0.02),
        )
        for number, ((layers, size), vocabulary) in enumerate(zip(shapes, vocabularies))
    ]
    return made, tokenizer, guide_tokenizer


def prompt_of(job: Mapping[str, Any]) -> str:
    """Random words; the blank at the end keeps the published joining of texts from merging two of them."""
    rng = np.random.default_rng(job["model_seed"])
    return " ".join(f"w{token}" for token in rng.integers(2, job["vocabulary"], job["prompt"])) + " "


def main() -> None:
    clone, file = map(Path, sys.argv[1:])
    published = Published(clone)
    answers = []
    for job in json.loads(file.read_text()):
        (large, tuned, untuned), tokenizer, guide_tokenizer = models_of(job)
        took = []
        for _ in range(job.get("repeats", 1)):
            with counted(large) as large_read, counted(tuned) as small_read:
                began = time.process_time()
                reply = published.reply(large, tuned, untuned, tokenizer, guide_tokenizer, job)
                took.append(time.process_time() - began)
        counts = {"large_positions": large_read.positions, "small_positions": small_read.positions}
        answers.append({"reply": reply, "cpu_s": min(took), "transformers": transformers.__version__} | counts)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
