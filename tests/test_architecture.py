"""The drawing in ARCHITECTURE.md, checked: imports go downwards only, siblings do not know one another, light doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "consilience"
LAYERS = (
    {"errors"},
    {"folders"},
    {"records", "rng", "stats"},
    {"config"},
    {"run"},
    {"chat", "align", "weights"},
    {"models", "train"},
    {"judge"},
    {"fuse", "merge", "prefer", "search", "annotate", "evaluate"},
    {"report", "serve"},
    {"pipelines"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
PURE = {
    "align",
    "stats",
    "fuse/losses.py",
    "prefer/losses.py",
    "merge/methods.py",
    "evaluate/comparison.py",
    "evaluate/pooling.py",
    "search/selection.py",
}
NOT_IN_PURE = {"torch.utils", "transformers", "safetensors", "httpx", "time", "random", "pathlib", "os", "io"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; say where it comes from"
            names.add(node.module or "")
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards_only(path: Path) -> None:
    room = room_of(path)
    assert room in LEVEL, f"{room} is in no layer: put it into the drawing"
    for name in imports_of(path):
        if name.startswith("consilience."):
            other = name.split(".")[1]
            assert other == room or LEVEL[other] < LEVEL[room], f"{room} imports {other}"


def test_the_drawing_shows_every_room() -> None:
    drawing = (PACKAGE.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for path in FILES:
        assert room_of(path) in drawing


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if str(path.relative_to(PACKAGE)) in PURE or room_of(path) in PURE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_pure_rooms_touch_no_file_network_or_clock(path: Path) -> None:
    assert not imports_of(path) & NOT_IN_PURE


@pytest.mark.parametrize(
    "code",
    [
        "import consilience.stats",
        "import consilience.records, consilience.config, consilience.run",
        "import consilience.align, consilience.models",
        "import consilience.models.endpoint, consilience.judge",
        "import consilience.evaluate.logs, consilience.evaluate.comparison, consilience.report",
        "import consilience.pipelines.evaluate",
        "import sys; sys.argv = ['consilience', '--help']\n"
        "try:\n    from consilience.cli import main; main()\nexcept SystemExit: pass",
    ],
)
def test_light_doors_do_not_import_torch(code: str) -> None:
    check = f"{code}\nimport sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_compare_does_not_import_torch(tmp_path: Path) -> None:
    rows = "".join(f"{item},{model},{item % 3}\n" for item in range(9) for model in "ab")
    (tmp_path / "scores.csv").write_text(f"item,model,score\n{rows}")
    words = ["consilience", "compare", str(tmp_path / "scores.csv"), "--html", str(tmp_path / "page.html")]
    code = (
        f"import sys; sys.argv = {words}\ntry:\n    from consilience.cli import main; main()\nexcept SystemExit: pass"
    )
    test_light_doors_do_not_import_torch(code)
    assert (tmp_path / "page.html").is_file()


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their bare names."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted({*names})
