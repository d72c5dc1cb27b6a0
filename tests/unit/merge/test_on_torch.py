"""`--device`: the same merges through torch. On torch's own cpu here; with a GPU, `-m gpu` runs them there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from consilience.errors import BackendError, ConfigError
from consilience.merge.arrays import merge_arrays
from consilience.merge.blocks import NotFinite
from consilience.merge.methods import MERGES

torch = pytest.importorskip("torch")
from consilience.merge import on_torch  # noqa: E402

Array = NDArray[Any]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {"slerp": {"t": 0.4}, "nearswap": {"t": 0.5}}.get(name, {})) for name in MERGES
} | {
    "breadcrumbs, half": ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1, "rescale": "l1"}),
    "dare, l1": ("dare_ties", {"rescale": "l1", "density": 0.7, "weight": [1, 0, 2]}),
    "della, l1": ("della", {"rescale": "l1", "density": [0.6, 1, 0.4], "epsilon": 0.3}),
    "model_stock, by row": ("model_stock", {"filter_wise": True}),
    "nuslerp, by row": ("nuslerp", {"flatten": False}),
    "sce, mergekit": ("sce", {"variant": "mergekit", "density": 0.5}),
    "ties, not normalised": ("ties", {"density": 0.3, "normalize": False, "weight": [1, -0.5, 2]}),
    "varm, by entry": ("varm", {"granularity": "parameter"}),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def stack(dtype: str, shape: tuple[int, int] = (37, 403)) -> tuple[Array, list[Array]]:
    """A base and three fine-tunes. One of them left most of a row as it was."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=shape).astype(np.float32)
    models = [base + rng.normal(size=shape).astype(np.float32) / 50 for _ in range(3)]
    models[0][3, 5:] = base[3, 5:]
    if dtype == "float32":
        return base, models
    stored = [(array.view(np.uint32) >> np.uint32(16)).astype(np.uint16) for array in (base, *models)]
    return stored[0], stored[1:]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_device_gives_what_the_cpu_gives(case: str, dtype: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two units of float32's last place; in bfloat16 all but one entry in a thousand bit for bit."""
    method, parameters = CASES[case]
    base, models = stack(dtype)
    models = models[: MERGES[method].models[1]]
    expected = merge_arrays(method, base, models, seed=3, name="x", **parameters)
    monkeypatch.setattr(on_torch, "BLOCK", 4_000)  # several blocks
    engine = on_torch.on_device(device)
    merged = merge_arrays(method, base, models, seed=3, name="x", engine=engine, **parameters)
    assert merged.dtype == expected.dtype
    if dtype == "float32":
        np.testing.assert_allclose(merged, expected, rtol=2.5e-7, atol=1e-9)
    else:
        assert (merged != expected).mean() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_random_numbers_are_those_of_the_kernels(device: str) -> None:
    # The first block of Philox4x32-10 for counter and key 0, as published with Random123 (kat_vectors).
    first = on_torch.philox(0, 0, 4, torch.device(device)).tolist()
    assert first == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_what_is_not_finite_is_refused() -> None:
    base, models = stack("float32")
    models[1][0, 0] = np.nan
    for method in ("linear", "ties", "sce"):
        with pytest.raises(NotFinite):
            merge_arrays(method, base, models, engine=on_torch.on_device("cpu"))
    assert issubclass(NotFinite, BackendError)


def test_a_device_that_is_not_there_is_one_line() -> None:
    for name in ("cuda:99", "a bicycle"):
        with pytest.raises(ConfigError, match="cannot be used here"):
            on_torch.on_device(name)
