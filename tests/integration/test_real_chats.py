"""The real-chats benchmark, two steps long: real replies, the real Mistral and Qwen tokenizers, three architectures."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHATS = ROOT.parent / "shared" / "data" / "chats"


@pytest.mark.skipif(not CHATS.is_dir(), reason="the real chats are not there: ../shared/data/chats")
@pytest.mark.skipif(
    not importlib.util.find_spec("dashscope"), reason="Qwen's tokenizer: pip install dashscope --no-deps"
)
def test_two_steps_on_real_chats(tmp_path: Path) -> None:
    size = "--longest 500 --prompts 12 --steps 2 --width 32 --layers 1 --micro-batch-size 1 --batch-size 2".split()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "real_chats.py", "--chats", CHATS, "--out", tmp_path, *size, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"pivot", "starling", "mixtral", "qwen", "sft", "fused_qwen", "many_to_one", "sce"} <= set(result["models"])
    for model in result["models"].values():
        assert 0.5 < model["nll"]["value"] < 6  # an untrained model spreads a byte over no more than 2^8 ways
    for source, found in result["alignment"].items():
        # With byte-exact spans real English matches at four of five positions and better; see docs/papers.md.
        assert found["matched"]["value"] > 0.6, source
