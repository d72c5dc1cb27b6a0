"""`consilience align` on the tiny world's tokenizers, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from consilience.align import SEQUENCE_ALIGNMENTS, VOCABULARY_MAPPINGS, Vocabularies, exact_matches
from consilience.pipelines.align import AlignResult, Output, align_recipe, align_report
from consilience.pipelines.tokenizer_quality import FITTED, SourceQuality

RECIPES = Path(__file__).parents[2] / "recipes"
Consilience = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizers(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with nothing but the tokenizers of the tiny world."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("pivot", "wren", "finch"):
        (folder / name).mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(world / name / file, folder / name / file)
    return folder


def chat(*turns: str, system: bool = False) -> str:
    roles = ["system"] * system + ["user", "assistant"] * len(turns)
    return json.dumps({"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns)]}) + "\n"


def chats_in(folder: Path) -> Path:
    path = folder / "chats.jsonl"
    path.write_text(chat("Hi", "Two birds."))
    return path


def packaged(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / name


def replies_of(chats: Path) -> list[str]:
    messages = [message for line in chats.read_text().splitlines() for message in json.loads(line)["messages"]]
    return [message["content"] for message in messages if message["role"] == "assistant"]


def only_source(result: AlignResult) -> SourceQuality:
    (found,) = result.sources.values()
    return found


def test_a_tokenizer_meets_itself_everywhere(world: Path, tokenizers: Path) -> None:
    finch, chats = str(tokenizers / "finch"), world / "chats.jsonl"
    found = only_source(align_report(finch, finch, chats))
    assert found.cut_alike
    assert found.matched.value == found.one_to_one.value == 1
    assert found.pivot_positions == found.source_positions == found.chunk_types["1-1"].positions
    assert found.chunk_types["1-1"].bytes == sum(len(reply) + 1 for reply in replies_of(chats))  # one more closes it
    assert found.tokens["other_bytes"] == found.tokens["unmapped"] == 0
    assert found.vocabulary.keys() == VOCABULARY_MAPPINGS.keys()
    for quality in (*found.vocabulary.values(), *found.other_half.values()):
        assert (quality.mapped.value, quality.right.value, quality.mass.value) == (1, 1, pytest.approx(1))
    assert found.sequence.keys() == SEQUENCE_ALIGNMENTS.keys()
    for method in found.sequence.values():  # a path of equal tokens costs nothing, so every warping is the diagonal
        assert (method.matched.value, method.right.value, method.wrong.value) == (1, 1, 0)
    assert not found.unmapped
    assert not found.unmatched
    assert found.matched.n == 24  # every chat asks for another line


def test_two_tokenizers_by_the_lengths_of_their_tokens(world: Path, tokenizers: Path) -> None:
    """Counted here from the bare replies: a token's name, with 'Ġ' or '▁' for a blank, is as long as the token."""
    from tokenizers import Tokenizer

    coarse, fine = (Tokenizer.from_file(str(tokenizers / name / "tokenizer.json")) for name in ("wren", "pivot"))

    def spans(tokenizer: Any, reply: str) -> set[tuple[int, int]]:
        ends = list(accumulate(map(len, tokenizer.encode(reply).tokens)))
        return {*pairwise([0, *ends]), (len(reply), len(reply) + 1)}  # the last one closes the reply

    positions = matched = same = 0
    for reply in replies_of(world / "chats.jsonl"):
        ours, theirs = spans(coarse, reply), spans(fine, reply)
        positions += len(ours)
        matched += len({start for start, _ in ours} & {start for start, _ in theirs})
        same += len(ours & theirs)
    assert same < matched
    found = only_source(
        align_report(str(tokenizers / "wren"), str(tokenizers / "pivot"), world / "chats.jsonl", template="pivot")
    )
    assert found.pivot_positions == positions
    assert found.matched.value == pytest.approx(matched / positions)
    assert found.one_to_one.value == pytest.approx(same / positions)
    assert found.chunk_types["1-1"].chunks == same


def test_text_json_and_page(consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["align", tokenizers / "pivot", tokenizers / "finch", "--chats", world / "chats.jsonl"]
    answer = consilience(*words, "--limit", 6, "--warped", 4, "--html", page, "--json")
    assert answer.code == 0
    assert answer.json["kind"] == "conversations"
    assert answer.json["template"] == "native"
    found = answer.json["sources"][str(tokenizers / "finch")]
    assert found["texts"] == 6
    assert sum(count["share_of_positions"] for count in found["chunk_types"].values()) == pytest.approx(1)
    assert sum(count["share_of_bytes"] for count in found["chunk_types"].values()) == pytest.approx(1)
    assert sum(count["positions"] for count in found["chunk_types"].values()) == found["pivot_positions"]
    without = sum(token["times"] for token in found["unmatched"])  # fewer than 50 kinds of them here
    assert found["matched"]["value"] == pytest.approx(1 - without / found["pivot_positions"])
    assert found["matched"]["units"] == "prompts"
    assert found["warped"] == found["sequence"]["fusechat2"]["matched"]["n"] == 4
    for method in found["sequence"].values():
        assert method["right"]["value"] <= found["sequence"]["spans"]["right"]["value"]
        assert method["right"]["value"] + method["wrong"]["value"] == pytest.approx(method["matched"]["value"])
    assert found["sequence"]["spans"]["wrong"]["value"] == 0
    assert found["set_aside"] == {}
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert 'class="token matched"' in html
    assert 'class="chunk one-one"' in html

    text = consilience(*words, "--template", "pivot", "--warped", 0)
    assert text.code == 0
    for said in ("matched", "1-1", "n-m", "pivot tokens without a partner", "conversations set aside: none", "prompts"):
        assert said in text.out
    assert "left out (--warped 0)" in text.out
    assert not {*SEQUENCE_ALIGNMENTS} - {"spans"} & {line.split(" ")[0] for line in text.out.splitlines()} - {
        *VOCABULARY_MAPPINGS
    }


def test_mappings_by_hand(tokenizers: Path, tmp_path: Path) -> None:
    """One text, so that what is counted on the other half is nothing, and only the same bytes are mapped there."""
    text = tmp_path / "text.txt"
    text.write_text("Bread is made of flour.")  # a line of the chats that the tokenizers were trained on
    found = only_source(align_report(str(tokenizers / "pivot"), str(tokenizers / "finch"), text=[text]))
    exact, fitted, half = found.vocabulary["exact"], found.vocabulary["statistics"], found.other_half["statistics"]
    assert (half.mapped.value, half.right.value) == (exact.mapped.value, exact.right.value)
    assert exact.mapped.value < 1
    assert found.matched.standard_error != found.matched.standard_error  # one unit: no interval
    # Every successor is one of at most ten here, so that all the mass is held; what has a partner keeps its own.
    assert found.top_k_mass.value == 1
    assert fitted.mass.value >= exact.mass.value


def test_long_texts_are_not_warped(tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Salt.\n\nBread is made of flour, water, salt and time.")
    pair = str(tokenizers / "pivot"), str(tokenizers / "finch")
    for longest, warped, too_long, said in ((9, 1, 1, None), (1, 2, 0, "longer than 1 tokens"), (4_096, 2, 0, None)):
        monkeypatch.setattr("consilience.pipelines.tokenizer_quality.LONGEST_WARPED", longest)
        found = only_source(align_report(*pair, text=[text]))
        assert (found.warped, found.too_long) == (warped, too_long)
        assert said is None if found.not_warped is None else said is not None and said in found.not_warped


def test_of_a_hub_name_only_the_tokenizer_is_fetched(
    consilience: Consilience, world: Path, tokenizers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert revision is None
        asked.append(allow_patterns)
        return str(tokenizers / name.removeprefix("owner/"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = consilience("align", "owner/pivot", "owner/finch", "--chats", world / "chats.jsonl", "--json").json
    assert [*found["sources"]] == ["owner/finch"]
    assert len(asked) == 2
    assert "*.json" in asked[0]
    assert not any("safetensors" in pattern for patterns in asked for pattern in patterns)


def test_which_mappings_are_fitted() -> None:
    """Those that the counts make a difference to; the others need no second half."""
    texts: list[bytes | None] = [b"a", b"ab", b"abc", b"b", b"c"]
    matches = exact_matches([b"abd", b"x"], texts)

    def mapped(name: str, partner: int) -> list[list[float]]:
        counts = sparse.csr_array(([5], ([0], [partner])), shape=(2, 5))
        found = VOCABULARY_MAPPINGS[name](Vocabularies(counts, matches, [b"abd", b"x"], texts))
        return np.asarray(found.todense()).tolist()

    assert {name for name in VOCABULARY_MAPPINGS if mapped(name, 3) != mapped(name, 4)} == {*FITTED}


def test_paragraphs_and_lines(consilience: Consilience, tokenizers: Path, tmp_path: Path) -> None:
    pivot, finch = str(tokenizers / "pivot"), str(tokenizers / "finch")
    prose, answers = tmp_path / "prose.txt", tmp_path / "answers.txt"
    prose.write_bytes("\ufeff\n\nTwo birds\nsang.\r\n \r\n\r\nTwo birds\nsang.\n\nBread <|im_end|> salt.".encode())
    answers.write_text("Bread.\nWater.\nSalt.\n")
    by_paragraph = align_report(pivot, finch, text=[prose])
    found = only_source(by_paragraph)
    assert (by_paragraph.kind, by_paragraph.template, found.texts) == ("paragraphs", "none", 3)
    assert (found.matched.n, found.matched.unit_kind) == (2, "distinct paragraphs")  # one of them is there twice
    # every byte of the text counts, those of a written control token, too; there is none that closes anything
    text = "Two birds\nsang.\n \n\nTwo birds\nsang.\n\nBread <|im_end|> salt."
    assert sum(count.bytes for count in found.chunk_types.values()) == len(text)
    by_line = align_report(pivot, finch, text=[answers], limit=2)
    assert (by_line.kind, only_source(by_line).texts) == ("lines", 2)
    both = consilience("align", pivot, finch, "--text", prose, "--text", answers, "--json")
    assert both.code == 0
    assert both.json["sources"][finch]["texts"] == 4  # a file without blank lines is one paragraph beside one with them


def test_a_recipe_has_a_section_per_source(consilience: Consilience, recipe: Callable[..., Path], world: Path) -> None:
    path = recipe(align={"vocabulary": "exact"}, select={"teach": "tokens"})
    answer = consilience("align", path, "--limit", 5, "--json")
    assert answer.code == 0
    assert [*answer.json["sources"]] == ["wren", "finch"]
    assert answer.json["listed"] == "exact"
    alone = align_report(str(world / "pivot"), str(world / "finch"), world / "chats.jsonl")
    whole = align_recipe(path)
    kept_back = round(0.25 * 24)
    assert whole.sources["finch"].texts == 24 - kept_back  # the chats that the recipe trains on
    assert only_source(alone).texts == 24
    assert answer.json["sources"]["wren"]["texts"] == 5
    shown = consilience("align", path, "--set", "held_out.share=0.5", "--template", "pivot")
    assert shown.code == 0
    assert "12 conversations" in shown.out
    assert "source  wren" in shown.out
    assert "source  finch" in shown.out
    assert "chat template: pivot" in shown.out


def test_the_tiny_recipe_needs_no_trained_models(consilience: Consilience) -> None:
    answer = consilience("align", RECIPES / "tiny-fuse.yaml", "--limit", 20, "--json")
    assert answer.code == 0
    assert [*answer.json["sources"]] == ["stars", "zorg", "sums"]


@pytest.mark.skipif(not importlib.util.find_spec("mistral_common"), reason="pip install mistral-common")
def test_folders_with_nothing_but_a_tokenizer(consilience: Consilience, tmp_path: Path) -> None:
    """tokenizer.model and tekken.json, as their makers publish them."""
    for name, file, saved in (
        ("mistral", "data/tokenizer.model.v1", "tokenizer.model"),
        ("nemo", "data/tekken_240911.json", "tekken.json"),
    ):
        (tmp_path / name).mkdir()
        shutil.copy(packaged("mistral_common", file), tmp_path / name / saved)
    text = tmp_path / "text.txt"
    text.write_text("Seven birds sat on the wire and sang until noon.\n\nŽluťoučký kůň – 東京 🙂 <s> naïve.")
    pair = tmp_path / "mistral", tmp_path / "nemo"
    answer = consilience("align", *pair, "--text", text, "--warped", 0, "--json")
    assert answer.code == 0
    (found,) = answer.json["sources"].values()
    assert sum(count["bytes"] for count in found["chunk_types"].values()) == len(text.read_bytes())
    assert found["matched"]["value"] > 0.5
    line = the_line(consilience("align", pair[0], pair[0], "--chats", chats_in(tmp_path)))
    assert "no chat template" in line
    assert "--text" in line


def test_conversations_that_cannot_be_read_are_counted(tokenizers: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict"
    shutil.copytree(tokenizers / "finch", strict)
    template = (strict / "chat_template.jinja").read_text()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(refusal + template)
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chat("Hi", "Two birds.") + chat("Be brief.", "Hi", "One bird.", system=True))
    found = only_source(align_report(str(tokenizers / "pivot"), str(strict), chats))
    assert found.texts == 1
    ((reason, count),) = found.set_aside.items()
    assert reason.startswith("source: ")
    assert "no system" in reason
    assert count == 1


def test_the_page_escapes_what_chats_hold(tokenizers: Path, tmp_path: Path) -> None:
    chats, page = tmp_path / "chats.jsonl", tmp_path / "page.html"
    chats.write_text(chat("Hi", "<script>alert(1)</script>"))
    align_report(str(tokenizers / "finch"), str(tokenizers / "wren"), chats, output=Output(html=page))
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;" in html


def the_line(answer: Any) -> str:
    """The line it is refused with."""
    assert answer.code == 2
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if line.startswith("consilience: ")]
    assert len(lines) == 1
    assert "Traceback" not in answer.err
    return lines[0]


def test_bad_input(consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path) -> None:
    chats, pivot, wren = world / "chats.jsonl", tokenizers / "pivot", tokenizers / "wren"
    assert "no model folder" in the_line(consilience("align", pivot, tmp_path / "nowhere", "--chats", chats))
    empty_folder = tmp_path / "empty"
    empty_folder.mkdir()
    assert "cannot load the tokenizer" in the_line(consilience("align", pivot, empty_folder, "--chats", chats))
    assert "no file" in the_line(consilience("align", pivot, wren, "--chats", tmp_path / "none.jsonl"))
    line = the_line(consilience("align", pivot, chats, "--chats", wren))
    assert "is a folder" in line
    assert "PIVOT SOURCE --chats FILE" in line
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "holds no conversations" in the_line(consilience("align", pivot, wren, "--chats", empty))
    assert "'native'" in the_line(consilience("align", pivot, wren, "--chats", chats, "--template", "nativ"))
    assert "no template is called 'none'" in the_line(
        consilience("align", pivot, wren, "--chats", chats, "--template", "none")
    )


def test_bad_text(consilience: Consilience, tokenizers: Path, tmp_path: Path) -> None:
    pivot, wren, text = tokenizers / "pivot", tokenizers / "wren", tmp_path / "text.txt"
    assert "no file" in the_line(consilience("align", pivot, wren, "--text", text))
    text.write_bytes("naïve".encode("latin-1"))
    line = the_line(consilience("align", pivot, wren, "--text", text))
    assert "not UTF-8" in line
    assert "byte 2" in line
    text.write_text(" \n\n")
    assert "holds no text" in the_line(consilience("align", pivot, wren, "--text", text))
    text.write_text("Some text.")
    assert "--template is for --chats" in the_line(
        consilience("align", pivot, wren, "--text", text, "--template", "pivot")
    )
    assert "is a folder" in the_line(consilience("align", pivot, wren, "--text", tmp_path))
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chat("Hi", "Hello"))
    assert f"give --chats {chats}" in the_line(consilience("align", pivot, wren, "--text", chats))
    for words in ([], ["--text", text, "--chats", text]):
        assert "either --chats FILE or --text FILE" in the_line(consilience("align", pivot, wren, *words))


def test_bad_recipes(
    consilience: Consilience, recipe: Callable[..., Path], world: Path, tokenizers: Path, tmp_path: Path
) -> None:
    without = tmp_path / "without"
    without.mkdir()
    shutil.copy(world / "wren" / "config.json", without)
    line = the_line(consilience("align", recipe(sources={"wren": str(world / "wren"), "bare": str(without)})))
    assert line.startswith("consilience: source bare: ")
    assert "has no tokenizer. Its files are tokenizer.json" in line
    there, chats = recipe(), world / "chats.jsonl"
    assert "names its own chats" in the_line(consilience("align", there, "--chats", chats))
    assert "together with a source" in the_line(consilience("align", there, tokenizers / "wren"))
    pair = ["align", tokenizers / "pivot", tokenizers / "wren", "--chats", chats]
    assert "--set, which is for recipes" in the_line(consilience(*pair, "--set", "seed=1"))
    assert "a source is missing" in the_line(consilience("align", tokenizers / "pivot", "--chats", chats))
    assert "no recipe" in the_line(consilience("align", tmp_path / "absent.yaml"))
    assert "has no 'tiny:' block" in the_line(consilience("align", recipe(pivot="tiny:pivot")))
    file = tokenizers / "wren" / "tokenizer.json"
    assert "is a file" in the_line(consilience("align", tokenizers / "pivot", file, "--chats", chats))


def test_a_source_without_template_may_borrow_the_pivots(
    consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tokenizers / "wren", bare)
    (bare / "chat_template.jinja").unlink()
    words = ["align", tokenizers / "pivot", bare, "--chats", world / "chats.jsonl"]
    line = the_line(consilience(*words))
    assert "no chat template" in line
    assert "--template pivot" in line
    assert consilience(*words, "--template", "pivot").code == 0


def test_nothing_matched_says_so(consilience: Consilience, tokenizers: Path, tmp_path: Path) -> None:
    open_ended = tmp_path / "open-ended"
    shutil.copytree(tokenizers / "finch", open_ended)
    (open_ended / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}")
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chat("Hi", ""))  # an empty reply that nothing closes has no position
    assert "nothing matched" in the_line(consilience("align", open_ended, open_ended, "--chats", chats))


def test_a_page_is_not_overwritten(consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    words = ["align", tokenizers / "pivot", tokenizers / "wren", "--chats", world / "chats.jsonl", "--limit", 2]
    assert "--force" in the_line(consilience(*words, "--html", page))
    assert page.read_text() == "mine"
    assert consilience(*words, "--html", page, "--force").code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert "is no folder" in the_line(consilience(*words, "--html", tmp_path / "nowhere" / "page.html"))
    assert "Give --html a file" in the_line(consilience(*words, "--html", tmp_path, "--force"))
