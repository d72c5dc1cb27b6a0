"""Matching on disk: what is stored, the published alignments, and shards in several threads. All by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from consilience.align import END, SEQUENCE_ALIGNMENTS, Spelling
from consilience.errors import ConfigError, DataError
from consilience.fuse.match import AlignSettings, match, spelling_of
from consilience.fuse.represent import Representation
from consilience.run import write_json

# "abcd" and the token that closes the reply, in every conversation. Pivot ab|cd, source ab|c|d.
PIVOT_BYTES = [None, b"ab", b"cd", b"\xc3"]
SOURCE_BYTES = [b"c", b"ab", b"d", None, b""]
SPELLINGS = (
    Spelling(["<s>", "▁ab", "cd", "<0xC3>"], ["<s>", "ab", "cd", "�"], "▁"),
    Spelling(["c", "Ġab", "d", "<|end|>", ""], ["c", " ab", "d", "<|end|>", ""], "Ġ"),
)


def representation(folder: Path, spans: list[tuple[int, int, int]], conversations: int, size: int) -> Representation:
    """The same tokens (start, end, id) in every conversation, two conversations to a shard."""
    folder.mkdir()
    shards = []
    for first in range(0, conversations, 2):
        rows = [(chat, *span) for chat in range(first, min(first + 2, conversations)) for span in spans]
        conversation, start, end, ids = np.array(rows, dtype=np.int32).T.copy()
        ones = np.zeros((len(rows), 1))
        shards.append(f"shard-{first // 2:05d}.safetensors")
        arrays = {
            "conversation_N": conversation,
            "reply_N": np.zeros_like(start),
            "position_N": start,
            "start_N": start,
            "end_N": end,
            "closing_N": start >= 4,
            "gold_ids_N": ids,
            "gold_logprobs_N": np.zeros(len(rows), dtype=np.float32),
            "ids_NK": ids[:, None].copy(),
            "logprobs_NK": ones.astype(np.float16),
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / shards[-1])
    manifest = {"model": folder.name, "vocabulary_size": size, "conversations": conversations, "shards": shards}
    write_json(folder / "manifest.json", manifest)
    return Representation(folder)


def sides(tmp_path: Path, conversations: int = 5) -> tuple[Representation, Representation]:
    pivot = representation(tmp_path / "pivot", [(0, 2, 1), (2, 4, 2), (4, 5, 0)], conversations, 4)
    source = representation(tmp_path / "source", [(0, 2, 1), (2, 3, 0), (3, 4, 2), (4, 5, 3)], conversations, 6)
    return pivot, source


def test_what_is_stored_is_what_was_known(tmp_path: Path) -> None:
    folder = tmp_path / "align"
    folder.mkdir()
    found = match(*sides(tmp_path), PIVOT_BYTES, SOURCE_BYTES, AlignSettings(), folder)
    known = found.vocabularies
    assert known.pivot_bytes == [END, b"ab", b"cd", b"\xc3"]  # id 0 closes the replies
    assert known.source_bytes == [b"c", b"ab", b"d", END, b"", None]  # one row of the head is padding
    assert known.counts.toarray()[[0, 1, 3], [2, 1, 0]].tolist() == [5, 5, 5]  # c-cd, ab-ab, end-end
    assert known.counts.sum() == 15
    assert sorted(zip(*known.matches.nonzero())) == [(1, 1), (3, 0)]
    assert found.alignment(1).source_P.tolist() == [0, 1, 3, 4, 5, 7]
    assert found.quality["positions"] == found.quality["matched"] == [3] * 5
    assert found.quality["one_to_one"] == 10
    assert found.quality["examples"][0]["source"] == [["ab", True], ["c", True], ["d", False], ["‹end›", True]]
    assert len(found.quality["examples"]) == 3


@pytest.mark.parametrize("name", sorted(SEQUENCE_ALIGNMENTS))
def test_every_sequence_alignment_is_carried_out(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "align"
    folder.mkdir()
    settings = AlignSettings(sequence=name)
    found = match(*sides(tmp_path), PIVOT_BYTES, SOURCE_BYTES, settings, folder, spellings=SPELLINGS)
    # After "ab" both sides are asked the same. After "cd" FuseChat asks the source after "d", which ends it; the
    # others find two partners and take none.
    last = {"spans": 3, "fusechat2": 3}.get(name, -1)
    expected = [[0, 1, last], [4, 5, last + 4 if last > 0 else -1]]
    assert found.alignment(0).source_P.reshape(2, 3).tolist() == expected
    assert found.alignment(0).chunk_P.tolist() == [0, 1, 2, 4, 5, 6]  # 3 is the gap between the replies


def test_the_published_ask_for_spellings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fusellm compares the tokens' spelling"):
        match(*sides(tmp_path), PIVOT_BYTES, SOURCE_BYTES, AlignSettings(sequence="fusellm"), tmp_path)
    with pytest.raises(ConfigError, match=r"no sequence alignment is called 'fusechat'. Did you mean 'fusechat"):
        AlignSettings(sequence="fusechat")


def test_threads_leave_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pivot, source = sides(tmp_path, conversations=41)
    for threads in (1, 4):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        (tmp_path / f"{threads}").mkdir()
        match(pivot, source, PIVOT_BYTES, SOURCE_BYTES, AlignSettings(), tmp_path / f"{threads}")
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert len(files) == 21 + 4  # shards; counts, matches, tokens, quality
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes()


def test_spelling_is_what_the_vocabulary_and_the_decoder_write() -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "Ġa": 1, "Ã": 2, "Ċ": 3}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert spelling_of(tokenizer, 7) == Spelling(
        ["a", "Ġa", "Ã", "Ċ", "</s>", "", ""], ["a", " a", "�", "\n", "</s>", "", ""], "Ġ"
    )


def test_a_vocabulary_without_blanks_has_no_published_spelling() -> None:
    backend = Tokenizer(models.WordPiece(vocab={"<unk>": 0, "a": 1, "##b": 2}, unk_token="<unk>"))
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", name_or_path="bert")
    with pytest.raises(ConfigError, match=r"'bert' marks what goes on with a word.* Take align.sequence=spans"):
        spelling_of(tokenizer, 3)
