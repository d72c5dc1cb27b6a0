"""What every merging method promises. A new method is covered by its line in MERGES."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consilience.errors import ConfigError
from consilience.merge.methods import MERGES, Merge

# Every method as it stands, and some with other parameters.
CASES: dict[str, Merge] = dict(MERGES) | {
    "sce, mergekit": partial(MERGES["sce"], variant="mergekit", density=0.5),
    "sce, all entries": partial(MERGES["sce"], density=1.0),
    "ties, all entries": partial(MERGES["ties"], density=1.0),
}
NOT_AVERAGES = {"task_arithmetic"}
AVERAGES = sorted(CASES.keys() - NOT_AVERAGES)
WEIGHTS_NORMALISED = ("linear", "ties")

# Tolerances of 1e-5 are a few roundings of numbers up to 16 in float32.
# Multiples of 1/8 add up without rounding in float32, so a vote for a sign does not hang on the order of adding.
values = st.integers(-64, 64).map(lambda eighths: eighths / 8)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Tensor, list[Tensor]]:
    """A base and one to four models: matrices of one shape."""
    rows, columns, count = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    size = rows * columns
    numbers = [draw(st.lists(values, min_size=size, max_size=size)) for _ in range(count)]
    base, *models = [torch.tensor(column).reshape(rows, columns) for column in numbers]
    return base, models


@pytest.fixture(params=sorted(CASES))
def merge(request: pytest.FixtureRequest) -> Merge:
    return CASES[request.param]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(stack=stacks(), copies=st.integers(1, 4), case=st.sampled_from(sorted(CASES)))
def test_copies_of_the_base_give_the_base(stack: tuple[Tensor, list[Tensor]], copies: int, case: str) -> None:
    base, _ = stack
    assert torch.equal(CASES[case](base, [base.clone()] * copies), base)


@settings(deadline=None)
@given(stack=stacks(), case=st.sampled_from(AVERAGES))
def test_copies_of_one_model_give_no_more_than_that_model(stack: tuple[Tensor, list[Tensor]], case: str) -> None:
    # Exactly the model, entry by entry, or the base where the entry was not selected.
    base, models = stack
    merged = CASES[case](base, [models[0]] * 3)
    is_base, is_model = (merged - base).abs() < 1e-5, (merged - models[0]).abs() < 1e-5
    assert (is_base | is_model).all()


@settings(deadline=None)
@given(stack=stacks(), case=st.sampled_from(sorted(CASES)), data=st.data())
def test_order_of_the_models_does_not_matter(
    stack: tuple[Tensor, list[Tensor]], case: str, data: st.DataObject
) -> None:
    base, models = stack
    shuffled = data.draw(st.permutations(models))
    torch.testing.assert_close(CASES[case](base, shuffled), CASES[case](base, models), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(stack=stacks(), case=st.sampled_from(AVERAGES))
def test_an_average_is_between_the_smallest_and_the_largest(stack: tuple[Tensor, list[Tensor]], case: str) -> None:
    base, models = stack
    everything = torch.stack([base, *models])
    merged = CASES[case](base, models)
    assert (merged >= everything.amin(0) - 1e-5).all()
    assert (merged <= everything.amax(0) + 1e-5).all()


@settings(deadline=None)
@given(stack=stacks(), case=st.sampled_from(WEIGHTS_NORMALISED), data=st.data())
def test_weights_count_only_in_proportion(stack: tuple[Tensor, list[Tensor]], case: str, data: st.DataObject) -> None:
    base, models = stack
    weights = [data.draw(st.integers(1, 8)) for _ in models]
    once, fourfold = (CASES[case](base, models, weights=[f * weight for weight in weights]) for f in (1, 4))
    torch.testing.assert_close(fourfold, once, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(stack=stacks(), case=st.sampled_from(sorted(CASES)))
def test_a_shifted_base_shifts_the_result(stack: tuple[Tensor, list[Tensor]], case: str) -> None:
    # Deltas are all that counts: theta + 1 everywhere gives the merge + 1.
    base, models = stack
    shifted = CASES[case](base + 1, [model + 1 for model in models])
    torch.testing.assert_close(shifted, CASES[case](base, models) + 1, rtol=1e-5, atol=1e-5)


def test_inputs_are_left_alone(merge: Merge) -> None:
    base, models = normal(5, 7, seed=0), [normal(5, 7, seed=1), normal(5, 7, seed=2)]
    before = [tensor.clone() for tensor in (base, *models)]
    merge(base, models)
    assert all(torch.equal(was, now) for was, now in zip(before, (base, *models)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 4), (2, 3, 4)])
def test_the_shape_is_kept_and_the_result_is_float32(merge: Merge, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    merged = merge(normal(*shape, seed=0).to(dtype), [normal(*shape, seed=k).to(dtype) for k in (1, 2, 3)])
    assert merged.shape == shape
    assert merged.dtype == torch.float32
    assert merged.isfinite().all()


def test_bfloat16_inputs_are_merged_in_float32(merge: Merge) -> None:
    base, *models = [normal(8, 8, seed=k).bfloat16() for k in range(4)]
    in_float32 = merge(base.float(), [model.float() for model in models])
    assert torch.equal(merge(base, models), in_float32)


@pytest.mark.parametrize("name", sorted(name for name in MERGES if name not in ("sce", "varm")))
def test_one_weight_per_model(name: str) -> None:
    with pytest.raises(ConfigError, match="2 weights for 3 models"):
        MERGES[name](torch.zeros(2), [torch.zeros(2)] * 3, weights=[1.0, 2.0])
