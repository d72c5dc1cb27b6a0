"""Every method on vectors small enough to merge by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from consilience.errors import ConfigError
from consilience.merge import methods
from consilience.merge.methods import linear, sce, task_arithmetic, ties, varm


@pytest.fixture(autouse=True, params=[methods.CHUNK, 3])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every vector is merged in one piece, and in pieces of three entries."""
    monkeypatch.setattr(methods, "CHUNK", request.param)


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


ONES = vector(1, 1, 1, 1)


def test_linear_by_hand() -> None:
    # (1 * 4 + 3 * 8) / 4 = 7; (1 * 0 + 3 * -4) / 4 = -3, whatever the base.
    models = [vector(4, 0), vector(8, -4)]
    assert_close(linear(vector(0, 0), models, weights=[1, 3]), vector(7, -3))
    assert_close(linear(vector(100, -50), models, weights=[1, 3]), vector(7, -3))
    assert_close(linear(vector(0, 0), models), vector(6, -2))


def test_linear_refuses_weights_that_cancel() -> None:
    with pytest.raises(ConfigError, match="sum to 0"):
        linear(ONES, [ONES, ONES], weights=[1, -1])


def test_task_arithmetic_by_hand() -> None:
    # Deltas (1, 0) and (0, 2); weighted 1 and 2: (1, 4); halved: (0.5, 2); plus the base (1, 1).
    merged = task_arithmetic(vector(1, 1), [vector(2, 1), vector(1, 3)], weights=[1, 2], scale=0.5)
    assert_close(merged, vector(1.5, 3))


def test_task_arithmetic_takes_a_change_away() -> None:
    assert_close(task_arithmetic(vector(1, 1), [vector(2, 0)], weights=[-1]), vector(0, 2))


def test_ties_by_hand() -> None:
    # Deltas (4, -3, 1, 0.5) and (-2, 5, 3, 0). The two largest of each: (4, -3, 0, 0) and (0, 5, 3, 0).
    # Votes 4, 2, 3, 0: all +. Means of the agreeing: 4; 5; 3; nobody's 0.
    models = [ONES + vector(4, -3, 1, 0.5), ONES + vector(-2, 5, 3, 0)]
    assert_close(ties(ONES, models, density=0.5), ONES + vector(4, 5, 3, 0))
    assert_close(ties(ONES, models, density=0.5, scale=0.5), ONES + vector(2, 2.5, 1.5, 0))


def test_ties_weights_enter_the_vote_and_the_mean() -> None:
    # Untrimmed. Votes 3 * (4, -3, 1, 0.5) + (-2, 5, 3, 0) = (10, -4, 6, 1.5): signs +, -, +, +.
    # Means: 4; -3; (3 * 1 + 1 * 3) / 4 = 1.5; 0.5.
    models = [ONES + vector(4, -3, 1, 0.5), ONES + vector(-2, 5, 3, 0)]
    assert_close(ties(ONES, models, density=1.0, weights=[3, 1]), ONES + vector(4, -3, 1.5, 0.5))


def test_ties_keeps_what_ties_with_the_smallest_kept() -> None:
    # One of four is kept; three are equally large.
    model = ONES + vector(1, -1, 1, 0.5)
    assert_close(ties(ONES, [model], density=0.25), ONES + vector(1, -1, 1, 0))


def test_ties_keeps_one_entry_at_least() -> None:
    assert_close(ties(ONES, [ONES + vector(1, -2, 1, 0)], density=0.01), ONES + vector(0, -2, 0, 0))


def test_ties_elects_plus_when_the_votes_cancel() -> None:
    for models in ([vector(3), vector(-1)], [vector(-1), vector(3)]):
        assert_close(ties(vector(1), models), vector(3))  # deltas 2 and -2


@pytest.mark.parametrize("weights", [[1, -1], [0, 0]])
def test_ties_refuses_weights_it_cannot_average_with(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="ties averages"):
        ties(ONES, [ONES, ONES], weights=weights)


def test_varm_by_hand() -> None:
    # Deltas (1, 1) and (3, -1): mean squares 1 and 5, so 1/6 and 5/6.
    merged = varm(vector(0, 0), [vector(1, 1), vector(3, -1)])
    assert_close(merged, vector(16 / 6, -4 / 6))


def test_varm_weighs_by_change_not_by_size() -> None:
    # Against a base of 10, the first model did not move, the second did: it has all the weight.
    assert_close(varm(vector(10, 10), [vector(10, 10), vector(10, 9)]), vector(10, 9))


def test_varm_against_float64() -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(0, 0.02, (32, 24)).astype(np.float32)
    models = [base + rng.normal(0, sigma, base.shape).astype(np.float32) for sigma in (1e-4, 3e-4, 1e-5)]
    exact = [model.astype(np.float64) for model in models]
    squares = [np.mean((model - base.astype(np.float64)) ** 2) for model in exact]
    expected = sum(square / sum(squares) * model for square, model in zip(squares, exact))
    merged = varm(torch.from_numpy(base), [torch.from_numpy(model) for model in models])
    assert np.abs(merged.numpy() - expected).max() <= 1e-8


# SCE on deltas (8, 0, 3, 1) and (2, 2, -1, 1), base 0.
# Variances of two are ((a - b) / 2)^2: 9, 1, 4, 0; three are nonzero, and int(0.7 * 3) = 2 selects entries 1 and 3.
# Squares there: 64 + 9 = 73 and 4 + 1 = 5, so eta = 73/78 and 5/78. Sums of the deltas: 10, 2, 2, 2, all +.
# Entry 1: both agree, (73 * 8 + 5 * 2) / 78. Entry 2: only the second, 2. Entry 3: only the first, 3. Entry 4: both, 1.
SCE_MODELS = [vector(8, 0, 3, 1), vector(2, 2, -1, 1)]
ZEROS = vector(0, 0, 0, 0)


def test_sce_by_hand() -> None:
    assert_close(sce(ZEROS, SCE_MODELS, density=0.7), vector(594 / 78, 2, 3, 1))


def test_sce_of_mergekit_leaves_what_is_not_selected() -> None:
    assert_close(sce(ZEROS, SCE_MODELS, density=0.7, variant="mergekit"), vector(594 / 78, 0, 3, 0))


@pytest.mark.parametrize("variant", ["fusechat", "mergekit"])
def test_sce_without_selection(variant: str) -> None:
    # Squares 64 + 9 + 1 = 74 and 4 + 4 + 1 + 1 = 10: entry 1 is (74 * 8 + 10 * 2) / 84.
    assert_close(sce(ZEROS, SCE_MODELS, density=1.0, variant=variant), vector(612 / 84, 2, 3, 1))


@pytest.mark.parametrize("variant", ["fusechat", "mergekit"])
def test_sce_erases_the_minority_direction(variant: str) -> None:
    # Sum -2: the 1 is erased. A delta of 0 has no direction and does not dilute. A sum of 0 counts as +.
    models = [vector(1, 0, 2), vector(-3, -4, -2)]
    assert_close(sce(vector(0, 0, 0), models, density=1.0, variant=variant), vector(-3, -4, 2))


@pytest.mark.parametrize("variant", ["fusechat", "mergekit"])
@pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-20, 1e-30])
def test_sce_has_no_fallback_for_small_changes(variant: str, size: float) -> None:
    # Deltas d and 2d: eta = 1/5 and 4/5, so 1.8 d however small d is. mergekit 0.1.5 gives 1.5 d below 1e-3 or so.
    merged = sce(vector(0), [vector(size), vector(2 * size)], density=1.0, variant=variant)
    assert_close(merged / size, vector(1.8))


def test_sce_of_equal_deltas_selects_nothing() -> None:
    # No variance between the models, so no entry is selected, eta is 1/2 each, and "mergekit" changes nothing.
    models = [vector(1, 2), vector(1, 2)]
    assert_close(sce(vector(0, 0), models, density=0.5), vector(1, 2))
    assert_close(sce(vector(0, 0), models, density=0.5, variant="mergekit"), vector(0, 0))


def test_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'fusechat'"):
        sce(ONES, [ONES], variant="fusechet")


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, 50.0, float("nan")])
@pytest.mark.parametrize("merge", [ties, sce])
def test_density_is_a_fraction(merge: object, density: float) -> None:
    with pytest.raises(ConfigError, match="fraction above 0"):
        merge(ONES, [ONES], density=density)  # type: ignore[operator]
