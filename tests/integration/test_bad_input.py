"""Input that cannot be used: one line that says what was got and what was expected, exit 2, nothing overwritten."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from consilience.run import open_run

Recipe = Callable[..., Path]
Consilience = Callable[..., Any]
Json = dict[str, Any]

FEW = {"targets": {"controls": []}, "merges": {"linear": {"method": "linear"}}}  # the fewest stages
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the finished run of it."""
    from consilience.pipelines.fuse import fuse_recipe

    path, out = recipe(**FEW), tmp_path_factory.mktemp("finished") / "run"
    fuse_recipe(path, out)
    return path, out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def the_line(answer: Any) -> str:
    """The one line on standard error that is not progress."""
    *progress, line = answer.err.splitlines()
    assert answer.code == 2
    assert answer.out == ""
    assert line.startswith("consilience: ")
    assert not any(other.startswith("consilience: ") for other in progress)
    assert "Traceback" not in answer.err
    return line


def is_still_new(out: Path) -> bool:
    """Whether a corrected command may have the folder `out`: another recipe is taken there."""
    with open_run(out, {"another": "recipe"}, {}):
        return True


@pytest.fixture
def refused(consilience: Consilience, finished: tuple[Path, Path], tmp_path: Path) -> Callable[..., str]:
    """`refused(recipe)` is the line it is refused with: in a new folder, which stays free, and in a finished run."""

    def run(path: Path, *words: str) -> str:
        out = tmp_path / "run"
        line = the_line(consilience("fuse", path, "--out", out, *words))
        assert is_still_new(out)
        before = contents(finished[1])
        the_line(consilience("fuse", path, "--out", finished[1], *words))
        assert contents(finished[1]) == before
        return line

    return run


# -- the recipe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trian": {}}, ["unknown key 'trian'. Did you mean 'train'?"]),
        ({"train": {"lerning_rate": 1}}, ["unknown key 'train.lerning_rate'. Did you mean 'learning_rate'?"]),
        ({"merges": {"My": {"densty": 1}}}, ["unknown key 'merges.My.densty'. Did you mean 'density'?"]),
        ({"train": {"learning_rate": -1}}, ["train.learning_rate: Input should be greater than 0, got -1."]),
        ({"train": {"batch_size": 6}}, ["train.batch_size is 6", "a multiple of train.micro_batch_size, which is 4"]),
        ({"data": {}, "pivot": 3}, ["pivot: Input should be a valid string, got 3."]),
        ({"held_out": {"path": "x.jsonl"}}, ["held_out takes either path or share"]),
        ({"sources": {"wren": "wren"}}, ["sources: got 1, expected two or more"]),
        ({"sources": {"a/../../b": "b", "c": "c"}}, ["'a/../../b' cannot name a folder"]),
        ({"sources": {"pivot": "b", "c": "c"}}, ["two models are called pivot"]),
        ({"sources": {"sce": "b", "c": "c"}}, ["two models are called sce"]),
        ({"merges": {"a": {"method": "tise"}}}, ["no merge method is called 'tise'. Did you mean 'ties'?"]),
        ({"merges": {"a": {"method": "linear", "density": 1}}}, ["linear takes no 'density'", "weight"]),
        (
            {"merges": {"a": {"method": "linear", "weights": [1, 1, 1]}}},
            ["merges.a: got 3 values of weight for 2 models"],
        ),
        ({"merges": {}, "targets": {"controls": [], "pairwise": False}}, ["nothing would be made"]),
        ({"tasks": {"t": {"path": "t", "match": "exakt"}}}, ["no match rule is called 'exakt'. Did you mean 'exact'?"]),
        ({"select": {"teach": "token"}}, ["no way of teaching is called 'token'. Did you mean 'tokens'?"]),
        ({"align": {"vocabulary": "exact"}}, ["align.vocabulary is given, but only select.teach=tokens"]),
        (
            {"targets": {"variants": {"plain": {"sources": ["wren"], "vocabulary": "exact"}}}},
            ["targets.variants.plain.vocabulary is given"],
        ),
        ({"select": {"function": "mince"}}, ["no fusion function is called 'mince'. Did you mean 'min_ce'?"]),
        ({"align": {"vocabulary": "statistic"}}, ["no vocabulary mapping", "Did you mean 'statistics'?"]),
        ({"loss": "kll"}, ["no fusion loss is called 'kll'. Did you mean 'kl'?"]),
        ({"targets": {"variants": {"v": {"sources": ["wern"]}}}}, ["targets.variants.v: no source is called 'wern'"]),
        ({"targets": {"variants": {"v": {"sources": ["wren"], "loss": "mse"}}}}, ["no fusion loss is called 'mse'"]),
        ({"result": "scee"}, ["no target or merge is called 'scee'. Did you mean 'sce'?"]),
        ({"pivot": "tiny:pivot"}, ["the recipe names 'tiny:pivot' but has no 'tiny:' block"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_recipe_that_is_not_sound(refused, recipe, changes, expected):
    line = refused(recipe(**changes))
    for words in expected:
        assert words in line


def test_a_misspelt_set(refused, recipe):
    assert "unknown key 'train.epoch'. Did you mean 'epochs'?" in refused(recipe(), "--set", "train.epoch=2")


def test_a_recipe_that_is_not_there_or_not_yaml(refused, recipe, tmp_path):
    assert "no recipe" in refused(tmp_path / "absent.yaml")
    broken = recipe()
    broken.write_text("pivot: a\nsources: {a: [}\n")
    assert f"{broken}, line 2: not YAML" in refused(broken)


# -- the data ----------------------------------------------------------------------------------------------------------


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", " holds no conversations"),
        ("\n \n", " holds no conversations"),
        (lines(CHAT, CHAT, "{'messages': []}"), ", line 3: not JSON (Expecting property name"),
        (lines(CHAT, {"text": "Hello"}), ", line 2: no 'messages'"),
        (lines({"messages": CHAT["messages"][:1]}), ", line 1: the conversation has no assistant turn"),
        (lines(CHAT | {"id": "x"}, CHAT | {"id": "x"}), ": two conversations have the id 'x'"),
    ],
)
@pytest.mark.parametrize("key", ["data", "held_out"])
def test_chats_that_cannot_be_used(refused, recipe, tmp_path, key, text, expected):
    chats = tmp_path / "chats.jsonl"
    chats.write_text(text)
    changes = {"data": {"path": str(chats)}} if key == "data" else {"held_out": {"share": None, "path": str(chats)}}
    assert f"{chats}{expected}" in refused(recipe(**changes))


def test_chats_with_one_prompt_cannot_be_divided(refused, recipe, tmp_path):
    (tmp_path / "chats.jsonl").write_text(lines(CHAT, CHAT))
    assert ": all 2 chats are held out" in refused(recipe(data={"path": str(tmp_path / "chats.jsonl")}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no questions"),
        (lines({"prompt": "1 + 1?"}), "line 1: expected an object with 'answer'"),
        (lines({"prompt": "1 + 1?", "answer": 2}, "2"), "line 2: expected an object with 'answer'"),
        (lines({"prompt": "1 + 1?", "answer": "two"}), "line 1: 'two' is no answer that 'match: last_number' can find"),
        (lines({"messages": [{"role": "user"}], "answer": 2}), "line 1: a user turn has content of type NoneType"),
        (lines(*[{"id": 5, "prompt": "1?", "answer": 1}] * 2), "line 2: a second question has the id '5'"),
    ],
)
def test_questions_that_cannot_be_used(refused, recipe, tmp_path, text, expected):
    (tmp_path / "t.jsonl").write_text(text)
    line = refused(recipe(tasks={"t": {"path": str(tmp_path / "t.jsonl"), "match": "last_number"}}))
    assert str(tmp_path / "t.jsonl") in line
    assert expected in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"path": "absent.jsonl"}}, "data: no file 'absent.jsonl'. Paths are relative to the recipe"),
        ({"held_out": {"share": None, "path": "no.jsonl"}}, "held_out: no file 'no.jsonl'"),
        ({"tasks": {"sums": {"path": "no.jsonl"}}}, "tasks.sums: no file 'no.jsonl'"),
        ({"pivot": "./no-model"}, "no model folder './no-model'"),
    ],
)
def test_a_file_that_is_missing(refused, recipe, changes, expected):
    assert expected in refused(recipe(**changes))


# -- the models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed("wren", change)` is a copy of a model after `change(folder)`."""

    def copy(name: str, change: Callable[[Path], object]) -> Path:
        folder = tmp_path / f"changed-{name}"
        shutil.copytree(world / name, folder)
        change(folder)
        return folder

    return copy


def with_tensor(folder: Path, change: Callable[[dict[str, torch.Tensor], str], object], part: str = "mlp") -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors, next(name for name in sorted(tensors) if part in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"), "is not Jinja"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load the tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
        (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "has no tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a valid JSON file"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "wren"}'), "does not recognize"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: halve(folder / "model.safetensors"), "is not readable as safetensors"),
        (pickle_weights, "holds pickled weights"),
    ],
    ids=[
        "template",
        "no-jinja",
        "no-tokenizer",
        "tokenizer",
        "made-up",
        "config",
        "unknown",
        "no-weights",
        "halved",
        "pickled",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_folder_that_is_no_chat_model(refused, recipe, world, changed, change, expected):
    folder = changed("wren", change)
    line = refused(recipe(sources={"finch": str(world / "finch"), "wren": str(folder)}))
    assert str(folder) in line
    assert expected in line


def test_a_model_that_is_on_no_hub(refused, recipe, world, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused(recipe(sources={"finch": str(world / "finch"), "wren": "nobody/no-wren"}))
    assert "model 'nobody/no-wren' is no local folder and cannot be fetched from the hub" in line


@pytest.mark.parametrize("how", ["same words", "another way there", "a link", "a copy"])
def test_the_pivot_among_the_sources(refused, recipe, world, changed, tmp_path, how):
    (tmp_path / "link").symlink_to(world / "pivot")
    path = {
        "same words": world / "pivot",
        "another way there": world / "wren" / ".." / "pivot",
        "a link": tmp_path / "link",
        "a copy": changed("pivot", lambda folder: None),
    }[how]
    line = refused(recipe(sources={"wren": str(world / "wren"), "twin": str(path)}))
    assert "twin" in line
    assert "the pivot" in line


def test_k_above_a_vocabulary(refused, recipe):
    line = refused(recipe(represent={"top_k": 141}))
    assert "represent.top_k is 141, but model pivot has a vocabulary of 140 tokens" in line


# -- what only shows on the way ----------------------------------------------------------------------------------------


@pytest.fixture
def stopped(consilience: Consilience, tmp_path: Path) -> Callable[..., str]:
    """`stopped(recipe)` is the line of a run that stops on its way; again it says the same and changes no stage."""

    def run(path: Path) -> str:
        out = tmp_path / "run"
        line = the_line(consilience("fuse", path, "--out", out))
        before = {file: text for file, text in contents(out).items() if ".partial" not in file}
        assert the_line(consilience("fuse", path, "--out", out)) == line
        assert {file: text for file, text in contents(out).items() if ".partial" not in file} == before
        return line

    return run


def test_too_little_text_in_common(stopped, recipe):
    line = stopped(recipe(align={"min_matched": 1.0}))
    assert "source wren: only " in line
    assert "align.min_matched asks for 100.0%" in line


def test_a_template_that_rewrites_every_reply(stopped, recipe, world, changed):
    def shout(folder: Path) -> None:
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text().replace("m.content", "m.content | upper"))

    line = stopped(recipe(sources={"wren": str(changed("wren", shout)), "finch": str(world / "finch")}))
    assert "model wren can read none of the conversations" in line


@pytest.mark.parametrize("name", ["pivot", "wren"])
def test_nan_logits_name_model_and_conversation(stopped, recipe, world, changed, name):
    folder = changed(name, lambda folder: with_tensor(folder, lambda tensors, key: tensors[key].fill_(torch.nan)))
    models = {"pivot": world / "pivot", "wren": world / "wren", "finch": world / "finch"} | {name: folder}
    line = stopped(recipe(pivot=str(models.pop("pivot")), sources={key: str(path) for key, path in models.items()}))
    assert f"model {name} gives NaN on conversation 'chat-" in line


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors, key: tensors.pop(key), "missing or have another shape than config.json says"),
        (lambda tensors, key: tensors.update({key: torch.zeros(3, 3)}), "missing or have another shape"),
    ],
)
def test_weights_that_do_not_fit_their_configuration(stopped, recipe, world, changed, change, expected):
    folder = changed("wren", lambda folder: with_tensor(folder, change))
    line = stopped(recipe(sources={"wren": str(folder), "finch": str(world / "finch")}))
    assert f"cannot load the model {str(folder)!r}" in line
    assert expected in line
    assert ".mlp." in line


def test_a_tokenizer_that_knows_more_tokens_than_its_model(stopped, recipe, world, changed):
    def shrink(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        with_tensor(folder, lambda tensors, key: tensors.update({key: tensors[key][:300].clone()}), "wte")

    line = stopped(recipe(sources={"wren": str(changed("wren", shrink)), "finch": str(world / "finch")}))
    assert "model wren has 300 tokens, but its tokenizer writes token 3" in line


@pytest.mark.parametrize(
    ("rate", "what", "named"),
    [(1e38, "the training loss is nan", 2), (1e30, "the gradient of the training loss is not finite", 4)],
)
def test_a_loss_that_is_not_finite_names_step_and_conversations(stopped, recipe, rate, what, named):
    line = stopped(recipe(train={"learning_rate": rate, "micro_batch_size": 2}))
    assert f"{what} at step 2, on conversations chat-" in line
    assert line.count("chat-") == named
    assert "A lower train.learning_rate" in line


# -- the run folder ----------------------------------------------------------------------------------------------------


def test_a_run_made_with_other_settings_or_inputs(consilience, recipe, finished, world, tmp_path):
    _, out = finished
    (tmp_path / "chats.jsonl").write_text((world / "chats.jsonl").read_text() + lines(CHAT))
    path = recipe(data={"path": str(tmp_path / "chats.jsonl")}, seed=3, train={"learning_rate": 0.5}, **FEW)
    before = contents(out)
    line = the_line(consilience("fuse", path, "--out", out))
    assert contents(out) == before
    assert f"{out} was made with other settings: " in line
    for words in (
        "setting seed was 0, now 3",
        "setting train.learning_rate was 0.01, now 0.5",
        f"setting data.path was {str(world / 'chats.jsonl')!r}, now {str(tmp_path / 'chats.jsonl')!r}",
        "input data was '",
    ):
        assert words in line
    assert "batch_size" not in line


def test_a_corrected_command_may_have_the_same_folder(consilience, recipe, tmp_path):
    (tmp_path / "chats.jsonl").write_text(lines("{"))
    out = tmp_path / "run"
    the_line(consilience("fuse", recipe(data={"path": str(tmp_path / "chats.jsonl")}, **FEW), "--out", out))
    the_line(consilience("fuse", recipe(represent={"top_k": 1000}, **FEW), "--out", out))
    assert consilience("fuse", recipe(**FEW), "--out", out).code == 0
    assert (out / "model" / "model.safetensors").is_file()


def test_an_out_that_is_a_file_or_not_a_run(consilience, finished, tmp_path):
    path, _ = finished
    (tmp_path / "thesis.tex").write_text("mine")
    assert "is a file. Give --out a new folder." in the_line(
        consilience("fuse", path, "--out", tmp_path / "thesis.tex")
    )
    assert "holds files that are not a run's" in the_line(consilience("fuse", path, "--out", tmp_path))
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_two_processes_in_one_run(consilience, recipe, tmp_path):
    with open_run(tmp_path / "run", {}, {}):
        line = the_line(consilience("fuse", recipe(), "--out", tmp_path / "run"))
    assert f"another process is at work in {tmp_path / 'run'}" in line


def test_an_interrupted_run_says_that_it_goes_on(consilience, finished, tmp_path, monkeypatch):
    import consilience.pipelines.fusion_stages as stages

    def interrupt(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    path, undisturbed = finished
    with monkeypatch.context() as patched:
        patched.setattr(stages, "merge_checkpoints", interrupt)
        answer = consilience("fuse", path, "--out", tmp_path / "run")
    assert answer.code == 130
    assert answer.err.endswith("interrupted; the same command goes on from here.\n")
    assert consilience("fuse", path, "--out", tmp_path / "run").code == 0
    weights = Path("model") / "model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (undisturbed / weights).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(kilobytes)` is a disk of its own, which grows when asked for more."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(place)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk takes the right to mount one")

    def grow(kilobytes: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(place)], check=True)
        return place

    yield grow
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # weights may still be mapped


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(consilience, recipe, world, tmp_path, small_disk):
    path = recipe(train={"save_steps": 1, "log_steps": 2}, **FEW)
    undisturbed = tmp_path / "undisturbed"
    assert consilience("fuse", path, "--out", undisturbed).code == 0
    stops = []
    for kilobytes in range(8, 20_000, 48):
        answer = consilience("fuse", path, "--out", small_disk(kilobytes) / "run")
        if answer.code == 0:
            break
        line = the_line(answer)
        assert "No space left" in line or "disk is full" in line
        stops.append(line)
    assert len(stops) > 5
    run = small_disk(kilobytes) / "run"
    for made in ("train/fused_wren/model.safetensors", "train/fused_wren/curve.json", "model/model.safetensors"):
        assert (run / made).read_bytes() == (undisturbed / made).read_bytes()
