from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from consilience.errors import BackendError, ConfigError
from consilience.run import SAMPLE, SAMPLES, RunFolder, fingerprint, open_run, versions, write_json, write_text

SETTINGS = {"pivot": "p", "train": {"epochs": 3, "rates": [1, 2]}, "title": None}
INPUTS = {"data": "0123", "sources.a": "4567"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def one_file(folder: Path) -> None:
    (folder / "made.txt").write_text("once")


def begun(out: Path) -> Path:
    with open_run(out, SETTINGS, INPUTS) as run:
        run.stage("first", one_file)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(out: Path, settings: dict[str, object] = SETTINGS, inputs: dict[str, str] = INPUTS) -> str:
    """The one line with which `out` is refused, after which every file in it is as it was."""
    before = contents(out) if out.is_dir() else out.read_bytes()
    with pytest.raises(ConfigError) as refused, open_run(out, settings, inputs):
        pass
    assert (contents(out) if out.is_dir() else out.read_bytes()) == before
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_record_says_what_was_asked_and_with_which_versions(out):
    record = json.loads((begun(out) / "run.json").read_text())
    assert record == {"settings": SETTINGS, "inputs": INPUTS, "versions": versions()}
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_stage_that_follows_from_the_same_is_taken_from_another_run(out, tmp_path):
    with open_run(tmp_path / "earlier", SETTINGS, INPUTS) as run:
        run.stage("train/a", one_file, key="same")
        run.stage("train/b", one_file, key="other")
        run.stage("keyless", one_file)
    earlier, made = contents(tmp_path / "earlier"), []
    with open_run(out, {"pivot": "q"}, INPUTS, others=[tmp_path / "earlier"]) as run:
        for name, key in (("train/a", "same"), ("train/b", "same"), ("keyless", "")):
            run.stage(name, made.append, key=key)
    assert [folder.name for folder in made] == ["b.partial", "keyless.partial"]
    assert (out / "train" / "a" / "made.txt").samefile(tmp_path / "earlier" / "train" / "a" / "made.txt")
    assert json.loads((out / "train" / "a" / "stage.json").read_text())["taken_from"].endswith("earlier/train/a")
    assert contents(tmp_path / "earlier") == earlier
    with pytest.raises(ConfigError, match="is no run folder"), open_run(out, SETTINGS, INPUTS, others=[tmp_path]):
        pass


def test_a_stage_is_made_once(out):
    made = []
    with open_run(out, SETTINGS, INPUTS) as run:
        for _ in range(2):
            assert run.stage("train/a", made.append) == out / "train" / "a"
    with open_run(out, SETTINGS, INPUTS) as run:
        run.stage("train/a", made.append)
    assert made == [out / "train" / "a.partial"]
    assert [json.loads(line)["stage"] for line in (out / "events.jsonl").read_text().splitlines()] == ["train/a"]
    assert [*run.seconds()] == ["train/a"]


def test_a_stage_that_was_stopped_goes_on_from_what_there_is(out):
    def stopped(folder: Path) -> None:
        (folder / "shard-0").write_text("whole")
        raise KeyboardInterrupt

    found = []

    def rest(folder: Path) -> None:
        found.extend(file.name for file in folder.iterdir())
        (folder / "shard-1").write_text("whole")

    with pytest.raises(KeyboardInterrupt), open_run(out, SETTINGS, INPUTS) as run:
        run.stage("represent", stopped)
    assert not (out / "represent").exists()
    with open_run(out, SETTINGS, INPUTS) as run:
        folder = run.stage("represent", rest)
    assert found == ["shard-0"]
    assert {file.name for file in folder.iterdir()} == {"shard-0", "shard-1", "stage.json"}
    assert not (out / "represent.partial").exists()


def test_every_changed_setting_and_input_is_named(out):
    line = refusal(
        begun(out), {"pivot": "q", "train": {"epochs": 3, "rates": [1]}, "seed": 0}, {"data": "x", "tasks.t": "y"}
    )
    assert line.startswith(f"{out} was made with other settings: ")
    for change in (
        "setting pivot was 'p', now 'q'",
        "setting train.rates was [1, 2], now [1]",
        "setting seed was None, now 0",
        "input data was '0123', now 'x'",
        "input sources.a was '4567', now None",
        "input tasks.t was None, now 'y'",
    ):
        assert change in line
    assert "epochs" not in line


def test_settings_that_json_writes_alike_are_the_same(out):
    begun(out)
    with open_run(out, {"pivot": "p", "train": {"epochs": 3, "rates": (1, 2)}, "title": None}, INPUTS) as run:
        assert isinstance(run, RunFolder)


def test_before_its_first_stage_a_run_may_still_change(out):
    with open_run(out, SETTINGS | {"pivot": "mistaken"}, {}):
        pass
    assert begun(out)
    assert json.loads((out / "run.json").read_text())["settings"] == SETTINGS


def test_a_half_made_first_stage_binds_like_a_whole_one(out):
    with open_run(out, SETTINGS, INPUTS):
        (out / "represent.partial").mkdir()
    assert "setting pivot" in refusal(out, SETTINGS | {"pivot": "q"})


@pytest.mark.parametrize("left", [["run.lock"], ["run.json.partial"], ["run.lock", "run.json.partial"]])
def test_what_a_command_killed_at_once_leaves_is_no_obstacle(out, left):
    out.mkdir()
    for name in left:
        (out / name).write_text("{")
    begun(out)


@pytest.mark.parametrize("name", ["thesis.tex", "run.json", "notes/a.txt"])
def test_a_foreign_folder_is_refused_and_left_alone(out, name):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"mine": true}')
    assert "holds files that are not a run's" in refusal(out)
    assert not (out / "run.lock").exists()


def test_an_out_that_is_a_file_is_refused(out):
    out.write_text("mine")
    assert refusal(out) == f"{out} is a file. Give --out a new folder."


def test_an_out_below_a_file_is_refused(out):
    out.write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written"), open_run(out / "deeper", SETTINGS, INPUTS):
        pass


HOLD = """
import sys
from pathlib import Path
from consilience.run import open_run
with open_run(Path(sys.argv[1]), {}, {}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(out):
    first = subprocess.Popen([sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        assert f"another process is at work in {out}" in refusal(out, {}, {})
    finally:
        first.kill()
        first.communicate()
    with open_run(out, {}, {}):
        pass


class Breaks:
    """What `json` cannot write."""


@pytest.mark.parametrize("before", [None, {"old": 1}])
def test_a_json_file_is_never_half(tmp_path, before):
    path = tmp_path / "a.json"
    if before is not None:
        write_json(path, before)
    with pytest.raises(TypeError):
        write_json(path, {"long": "x" * 100_000, "broken": Breaks()})
    assert (json.loads(path.read_text()) if path.exists() else None) == before
    write_json(path, {"new": "ü"})
    assert json.loads(path.read_text()) == {"new": "ü"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_text_file_is_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "grün")
    assert (tmp_path / "a.txt").read_text() == "grün"
    assert len([*tmp_path.iterdir()]) == 1


def test_a_fingerprint_sees_contents_and_names(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = fingerprint(folder)
    (folder / "a").write_text("2")
    second = fingerprint(folder)
    (folder / "a").rename(folder / "b")
    third = fingerprint(folder)
    (folder / "c").touch()
    assert len({first, second, third, fingerprint(folder)}) == 4
    (folder / "c").unlink()
    (folder / "b").rename(folder / "a")
    (folder / "a").write_text("1")
    os.utime(folder / "a", (0, 0))
    assert fingerprint(folder) == first
    assert fingerprint(folder.rename(tmp_path / "moved")) == first


def test_a_large_file_enters_by_its_size_and_samples(tmp_path):
    path = tmp_path / "weights"
    size = SAMPLE * SAMPLES * 2
    prints = []
    for place in (None, 0, size - 1, size // 15):  # the whole, its ends, and the place of the second sample
        with path.open("wb") as file:
            file.truncate(size)
            if place is not None:
                file.seek(place)
                file.write(b"\1")
        prints.append(fingerprint(path))
    with path.open("wb") as file:
        file.truncate(size + 1)
    assert len({*prints, fingerprint(path)}) == 5


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(BackendError, match=r"no file or folder .*absent"):
        fingerprint(tmp_path / "absent")


def test_half_a_character_is_written_as_json_writes_it(tmp_path):
    write_json(tmp_path / "a.json", {"reply": "half \ud83d of it"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"reply": "half \ud83d of it"}
