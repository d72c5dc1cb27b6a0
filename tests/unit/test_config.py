from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from consilience.config import Settings, flatten, load_recipe, override, parse
from consilience.errors import ConfigError, nearest, pick


class Adapter(Settings):
    rank: int = 16
    modules: str | list[str] = "all"


class Train(Settings):
    learning_rate: float = Field(1e-3, gt=0)
    epochs: int = 3
    adapter: Adapter | None = None


class Merge(Settings):
    method: str = "linear"
    density: float | None = None

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        pick({"linear": 0, "ties": 1}, name, "merge method")
        return name


class Recipe(Settings):
    pivot: str
    train: Train = Train()
    merges: dict[str, Merge] = {}
    steps: tuple[Train, ...] = ()


def refusal(tree: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(tree, Recipe, where="r.yaml")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("tree", "key", "meant"),
    [
        ({"pivott": 1}, "pivott", "pivot"),
        ({"train": {"lerning_rate": 1}}, "train.lerning_rate", "learning_rate"),
        ({"train": {"adapter": {"ranks": 1}}}, "train.adapter.ranks", "rank"),
        ({"merges": {"a": {"densty": 1}}}, "merges.a.densty", "density"),
        ({"merges": {"SCE": {"densty": 1}}}, "merges.SCE.densty", "density"),
        ({"steps": [{}, {"epoch": 1}]}, "steps.1.epoch", "epochs"),
    ],
)
def test_an_unknown_key_is_named_whole_with_the_nearest(tree, key, meant):
    line = refusal({"pivot": "p"} | tree)
    assert line.startswith(f"r.yaml: unknown key {key!r}. Did you mean {meant!r}? There are: ")


def test_every_fault_stands_on_the_one_line():
    line = refusal({"trian": {}, "train": {"learning_rate": -1, "epochs": "many"}})
    assert "key 'pivot' is missing." in line
    assert "Did you mean 'train'?" in line
    assert "train.learning_rate: Input should be greater than 0, got -1." in line
    assert "train.epochs: " in line
    assert "got 'many'" in line


def test_a_union_s_arms_are_no_part_of_the_key():
    line = refusal({"pivot": "p", "train": {"adapter": {"modules": 5}}})
    assert "train.adapter.modules: Input should be a valid string, got 5." in line
    assert "modules.str" not in line


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1, gt=0)


class Square(Settings):
    kind: Literal["square"] = "square"
    side: float


class Drawing(Settings):
    shapes: dict[str, Annotated[Circle | Square, Field(discriminator="kind")]]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"kind": "circle", "radus": 2}, "unknown key 'shapes.a.radus'. Did you mean 'radius'?"),
        ({"kind": "circle", "radius": 0}, "shapes.a.radius: Input should be greater than 0, got 0."),
        ({"kind": "square"}, "key 'shapes.a.side' is missing."),
        ({"kind": "oval"}, "shapes.a: Input tag 'oval' found using 'kind' does not match any of the expected tags"),
    ],
)
def test_arms_that_a_key_tells_apart(shape, said):
    with pytest.raises(ConfigError) as refused:
        parse({"shapes": {"a": shape}}, Drawing, where="r.yaml")
    assert said in str(refused.value)


def test_a_validator_s_own_words_come_with_the_recipe_s_name():
    line = refusal({"pivot": "p", "merges": {"a": {"method": "tise"}}})
    assert line == "r.yaml: no merge method is called 'tise'. Did you mean 'ties'? There are: linear, ties."


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Train().epochs = 4  # type: ignore[misc]


def test_set_goes_on_top_of_the_file(written):
    path = written("pivot: p\ntrain: {epochs: 1, learning_rate: 2.0e-4}\n")
    recipe = load_recipe(path, Recipe, ["train.epochs=7", "merges.a.method=ties", "pivot=q", "merges.b={density: 0.5}"])
    assert recipe.pivot == "q"
    assert recipe.train == Train(epochs=7, learning_rate=2e-4)
    assert recipe.merges == {"a": Merge(method="ties"), "b": Merge(density=0.5)}


def test_a_misspelt_set_is_found_like_a_misspelt_key(written):
    with pytest.raises(ConfigError, match=r"unknown key 'train.epoch'\. Did you mean 'epochs'\?"):
        load_recipe(written("pivot: p"), Recipe, ["train.epoch=7"])


@pytest.mark.parametrize("text", ["epochs", "=3", "train.epochs=[1"])
def test_a_set_that_cannot_be_read_is_quoted(written, text):
    with pytest.raises(ConfigError, match=r"--set '"):
        load_recipe(written("pivot: p"), Recipe, [text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "is not a mapping"),
        ("pivot: p\ntrain: {epochs: [1\n", "line 3: not YAML"),
        ("pivot: p\ntrain: {}\npivot: q\n", "line 3: not YAML ('pivot' twice)"),
        ("pivot: p\nmerges:\n  a: {}\n  a: {}\n", "line 4: not YAML ('a' twice)"),
        (b"pivot: \xff\n", "not UTF-8 text"),
        ("pivot: !!python/object/apply:os.getcwd []\n", "line 1: not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_says_so(written, text, expected):
    path = written(text)
    with pytest.raises(ConfigError) as refused:
        load_recipe(path, Recipe)
    assert str(refused.value).startswith(str(path))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml", Recipe)


KEYS = st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=4)
TREES = st.recursive(
    st.integers() | st.booleans() | st.none(), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(KEYS, TREES, max_size=3))
def test_a_flattened_tree_is_rebuilt_by_set(tree):
    lines = [f"{key}={json.dumps(value)}" for key, value in flatten(tree).items() if key]
    assert override({}, lines) == tree


def test_flatten_by_hand():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}


def test_nothing_near_is_not_guessed():
    assert nearest("zzz", ["linear", "ties"]) == ""
    with pytest.raises(ConfigError, match=r"^no door is called 'zzz'\. There are: linear, ties\.$"):
        pick({"ties": 1, "linear": 0}, "zzz", "door")
