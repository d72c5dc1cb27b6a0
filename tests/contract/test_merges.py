"""What every merging method promises. A new method is covered by its line in MERGES."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from consilience.merge import blocks
from consilience.merge.arrays import merge_arrays
from consilience.merge.methods import MERGES

Array = NDArray[Any]
Stack = tuple[Array, list[Array]]

NEEDED: dict[str, dict[str, Any]] = {"slerp": {"t": 0.4}, "nearswap": {"t": 0.5}}
# Every method as it stands, and some with other parameters.
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, NEEDED.get(name, {})) for name in MERGES} | {
    "breadcrumbs, half": ("breadcrumbs", {"density": 0.5, "gamma": 0.1, "rescale": "l1"}),
    "dare_ties, l1": ("dare_ties", {"rescale": "l1", "density": 0.7}),
    "della, l1": ("della", {"rescale": "l1", "density": 0.6, "epsilon": 0.3}),
    "model_stock, by row": ("model_stock", {"filter_wise": True}),
    "nuslerp, by row": ("nuslerp", {"flatten": False}),
    "sce, all entries": ("sce", {"density": 1.0}),
    "sce, mergekit": ("sce", {"variant": "mergekit", "density": 0.5}),
    "ties, all entries": ("ties", {"density": 1.0}),
    "ties, l1": ("ties", {"density": 0.3, "rescale": "l1"}),
    "varm, by entry": ("varm", {"granularity": "parameter"}),
}
# Models are told apart by their place: the generator's keys, or two weights.
ORDERED = {name for name, (method, _) in CASES.items() if MERGES[method].random or method == "nuslerp"}
AVERAGES = sorted(name for name, (method, given) in CASES.items() if MERGES[method].average and "rescale" not in given)
WITH_BASE = sorted(name for name, (method, _) in CASES.items() if MERGES[method].base != "none")
# A delta's size does not matter by itself: no threshold, softmax or guard of an absolute size.
SCALE_FREE = sorted(
    name
    for name, (method, given) in CASES.items()
    if method not in ("arcee_fusion", "multislerp", "nearswap", "ram", "ramplus_tl") and given.get("rescale") != "l1"
)
OF_DELTAS = [name for name in WITH_BASE if CASES[name][0] not in ("slerp", "arcee_fusion")]
# One model with weight 1, nothing dropped.
WHOLE: dict[str, dict[str, Any]] = {
    "breadcrumbs": {"density": 1.0},
    "breadcrumbs_ties": {"density": 1.0, "normalize": True},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0, "normalize": True},
    "della": {"density": 1.0},
    "della_linear": {"density": 1.0},
    "karcher": {},
    "linear": {},
    "multislerp": {},
    "nearswap": {"t": 1e30},
    "passthrough": {},
    "sce": {"density": 1.0},
    "slerp": {"t": 1.0},
    "task_arithmetic": {},
    "ties": {"density": 1.0},
    "varm": {},
}

# Multiples of 1/8 add up without rounding in float32, so a vote for a sign does not hang on the order of adding.
values = st.integers(-64, 64).map(lambda eighths: eighths / 8)


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """A base and four models: matrices of one shape, in float32."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size = rows * columns
    numbers = [draw(st.lists(values, min_size=size, max_size=size)) for _ in range(5)]
    base, *models = [np.array(column, np.float32).reshape(rows, columns) for column in numbers]
    return base, models


def merged(case: str, base: Array, models: list[Array], **more: Any) -> Array:
    """The case's merge of as many of the models as the method takes."""
    method, parameters = CASES[case]
    most = MERGES[method].models[1]
    return merge_arrays(method, base, models[:most], **parameters, **more)


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def bfloat16(array: Array) -> Array:
    """Cut off, not rounded: any bfloat16 will do here."""
    return (array.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(deadline=None, max_examples=200)
@given(stack=stacks(), name=st.sampled_from(WITH_BASE))
def test_copies_of_the_base_give_the_base(stack: Stack, name: str) -> None:
    base, _ = stack
    assert merged(name, base, [base.copy()] * 4).tobytes() == base.tobytes()


@settings(deadline=None, max_examples=100)
@given(stack=stacks(), name=st.sampled_from([name for name in sorted(CASES) if name not in WITH_BASE]))
def test_copies_of_one_model_give_that_model(stack: Stack, name: str) -> None:
    base, _ = stack
    assert_allclose(merged(name, base, [base.copy()] * 4), base, rtol=1e-6)


@settings(deadline=None, max_examples=200)
@given(stack=stacks(), name=st.sampled_from(sorted(CASES.keys() - ORDERED)), data=st.data())
def test_order_of_the_models_does_not_matter(stack: Stack, name: str, data: st.DataObject) -> None:
    base, models = stack
    models = models[: MERGES[CASES[name][0]].models[1]]
    shuffled = data.draw(st.permutations(models))
    assert_allclose(merged(name, base, shuffled), merged(name, base, models), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=150)
@given(stack=stacks(), name=st.sampled_from(AVERAGES))
def test_an_average_is_between_the_smallest_and_the_largest(stack: Stack, name: str) -> None:
    base, models = stack
    everything = np.stack([base, *models])
    result = merged(name, base, models)
    assert (result >= everything.min(0) - 1e-5).all()
    assert (result <= everything.max(0) + 1e-5).all()


@settings(deadline=None, max_examples=60)
@given(stack=stacks(), method=st.sampled_from(["linear", "ties", "multislerp"]), data=st.data())
def test_weights_count_only_in_proportion(stack: Stack, method: str, data: st.DataObject) -> None:
    base, models = stack
    weights = [data.draw(st.integers(1, 8)) for _ in models]
    once, fourfold = (merge_arrays(method, base, models, weight=[f * weight for weight in weights]) for f in (1, 4))
    assert_allclose(fourfold, once, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=200)
@given(stack=stacks(), name=st.sampled_from(SCALE_FREE), factor=st.sampled_from([2.0**-60, 0.25, 2.0**40]))
def test_inputs_times_a_number_give_the_result_times_it(stack: Stack, name: str, factor: float) -> None:
    # Exactly, for powers of two: nothing is compared with a number of a fixed size.
    base, models = stack
    scale = np.float32(factor)
    once = merged(name, base, models)
    assert_allclose(merged(name, base * scale, [model * scale for model in models]), once * scale, rtol=1e-6)


@settings(deadline=None, max_examples=150)
@given(
    stack=stacks(),
    name=st.sampled_from([name for name in WITH_BASE if CASES[name][0] not in ("slerp", "arcee_fusion")]),
)
def test_a_shifted_base_shifts_the_result(stack: Stack, name: str) -> None:
    # Deltas are all that counts: theta + 1 everywhere gives the merge + 1.
    base, models = stack
    shifted = merged(name, base + 1, [model + 1 for model in models])
    assert_allclose(shifted, merged(name, base, models) + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", sorted(WHOLE))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_model_of_weight_1_is_that_model(method: str, dtype: str) -> None:
    base, model = normal(7, 1000, seed=0), normal(7, 1000, seed=1)
    model[0, :6] = [0.0, -0.0, 1e-30, -1e-38, 1e-45, 3e4]  # also beside a base that is much larger
    if dtype == "bfloat16":
        base, model = bfloat16(base), bfloat16(model)
    elif dtype == "float16":
        base, model = base.astype(np.float16), model.astype(np.float16)
    result = merge_arrays(method, base, [model], **WHOLE[method])
    assert result.tobytes() == model.tobytes()


def test_inputs_are_left_alone(case: str) -> None:
    base, models = normal(5, 7, seed=0), [normal(5, 7, seed=seed) for seed in (1, 2, 3)]
    before = [array.copy() for array in (base, *models)]
    merged(case, base, models)
    assert all(np.array_equal(was, now) for was, now in zip(before, (base, *models)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint16])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 4), (2, 3, 4), (0, 4)])
def test_shape_and_type_are_kept(case: str, dtype: Any, shape: tuple[int, ...]) -> None:
    def made(seed: int) -> Array:
        drawn = normal(*shape, seed=seed)
        return bfloat16(np.asarray(drawn, np.float32)).reshape(shape) if dtype == np.uint16 else drawn.astype(dtype)

    result = merged(case, made(0), [made(seed) for seed in (1, 2, 3)])
    assert result.shape == shape
    assert result.dtype == dtype
    if dtype != np.uint16:
        assert np.isfinite(result).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_types_are_merged_in_large_ones_and_rounded_once(case: str, dtype: str) -> None:
    """The result is the nearest number to that of the same inputs in float64."""
    arrays = [normal(8, 64, seed=seed) for seed in range(4)]
    if dtype == "bfloat16":
        stored = [bfloat16(array) for array in arrays]
        wide = [(array.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64) for array in stored]
    else:
        stored = [array.astype(np.float16) for array in arrays]
        wide = [array.astype(np.float64) for array in stored]
    result, exact = merged(case, stored[0], stored[1:]), merged(case, wide[0], wide[1:])
    if dtype == "float16":
        assert np.array_equal(result, exact.astype(np.float32).astype(np.float16))
        return
    bits = exact.astype(np.float32).view(np.uint32).astype(np.int64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
    assert np.array_equal(result, nearest.astype(np.uint16))


@pytest.mark.parametrize("shape", [(3, 70_001), (700, 336)])
def test_the_same_bits_for_any_threads_and_blocks(
    case: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = normal(*shape, seed=0)
    models = [base + normal(*shape, seed=seed) / 8 for seed in (1, 2, 3)]
    arrays = [bfloat16(array) for array in (base, *models)]
    once = merged(case, arrays[0], arrays[1:])
    monkeypatch.setattr(blocks, "BLOCK", blocks.SEGMENT)
    assert merged(case, arrays[0], arrays[1:], threads=3).tobytes() == once.tobytes()


def test_random_methods_repeat_with_their_seed_alone(case: str) -> None:
    base, models = normal(30, 40, seed=0), [normal(30, 40, seed=seed) for seed in (1, 2, 3)]
    first, again, other = (merged(case, base, models, seed=seed) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert (first.tobytes() == other.tobytes()) != MERGES[CASES[case][0]].random
