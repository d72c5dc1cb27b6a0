"""What every preference loss keeps; a new one is covered by its line in LOSSES."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from consilience.errors import ConfigError
from consilience.prefer.losses import LOSSES, WITHOUT_REFERENCE, LossSettings, PairLogprobs, pair_loss

LN_2 = ("dpo", "selm", "xpo", "vpo", "wrpo")  # by their definitions, where policy and reference agree
TERMS: dict[str, Callable[[float, float], float]] = {  # the weight of (log pi(y) - log ref(y)) beside DPO
    "selm": lambda alpha, beta: alpha * beta,
    "xpo": lambda alpha, beta: alpha,
    "vpo": lambda alpha, beta: alpha * beta,
}


def drawn(seed: int = 0, pairs: int = 7) -> PairLogprobs:
    numbers = torch.Generator().manual_seed(seed)
    sums = [-40 * torch.rand(pairs, generator=numbers, dtype=torch.float64) - 1 for _ in range(6)]
    tokens = [torch.randint(2, 30, (pairs,), generator=numbers).double() for _ in range(3)]
    return PairLogprobs(*sums, *tokens)


def at_reference(pairs: PairLogprobs) -> PairLogprobs:
    return pairs._replace(chosen_B=pairs.ref_chosen_B, rejected_B=pairs.ref_rejected_B, third_B=pairs.ref_third_B)


def gradients(pairs: PairLogprobs, settings: LossSettings) -> tuple[Tensor, ...]:
    """Of the summed loss in the policy's log-probabilities: chosen, rejected, third."""
    leaves = [value.clone().requires_grad_() for value in pairs[:3]]
    loss = pair_loss(PairLogprobs(*leaves, *pairs[3:]), settings).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves))


@pytest.fixture(params=sorted(LOSSES))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_one_loss_per_pair_whatever_stands_beside_it(name: str) -> None:
    pairs, settings = drawn(), LossSettings(name=name, alpha=0.3, label_smoothing=0.1)
    together = pair_loss(pairs, settings)
    alone = torch.cat([pair_loss(PairLogprobs(*(value[i : i + 1] for value in pairs)), settings) for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_chosen_is_raised_over_rejected(name: str) -> None:
    chosen, rejected, _ = gradients(drawn(), LossSettings(name=name, beta=0.01))
    assert (chosen <= 0).all()
    assert (rejected >= 0).all()
    assert (chosen < rejected).all()


def test_gradient_stays_finite_at_saturation(name: str) -> None:
    pairs = drawn()
    for far in (pairs._replace(chosen_B=pairs.chosen_B - 1e6), pairs._replace(rejected_B=pairs.rejected_B - 1e6)):
        for gradient in gradients(far, LossSettings(name=name, beta=1.0, alpha=0.1)):
            assert gradient.isfinite().all()


def test_per_token_takes_means(name: str) -> None:
    pairs, settings = drawn(), LossSettings(name=name, alpha=0.1)
    counts = (pairs.chosen_tokens_B, pairs.rejected_tokens_B, pairs.third_tokens_B) * 2
    means = PairLogprobs(*(total / count for total, count in zip(pairs[:6], counts)), *[torch.ones(7)] * 3)
    by_hand = pair_loss(means, settings)
    torch.testing.assert_close(pair_loss(pairs, settings.model_copy(update={"per_token": True})), by_hand)


def test_without_reference_means_that_it_does_not_enter(name: str) -> None:
    pairs = drawn()
    moved = pairs._replace(ref_chosen_B=pairs.ref_chosen_B + 3)
    same = torch.equal(pair_loss(pairs, LossSettings(name=name)), pair_loss(moved, LossSettings(name=name)))
    assert same == (name in WITHOUT_REFERENCE)


@pytest.mark.parametrize("name", LN_2)
@pytest.mark.parametrize("alpha", [0.0, 0.001, 0.5])
def test_ln_2_where_policy_and_reference_agree(name: str, alpha: float) -> None:
    loss = pair_loss(at_reference(drawn()), LossSettings(name=name, alpha=alpha))
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", LN_2)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_alpha_0_is_dpo_bit_for_bit(name: str, label_smoothing: float) -> None:
    if name == "wrpo" and label_smoothing:
        pytest.skip("WRPO has no label smoothing")
    pairs = PairLogprobs(*(value.float() for value in drawn()))
    plain = LossSettings(name="dpo", label_smoothing=label_smoothing)
    settings = plain.model_copy(update={"name": name})
    assert torch.equal(pair_loss(pairs, settings), pair_loss(pairs, plain))
    for ours, dpo in zip(gradients(pairs, settings), gradients(pairs, plain)):
        assert torch.equal(ours, dpo)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_closed_form_gradients(name: str) -> None:
    # references: with s = sigmoid(-m), DPO's gradients are -beta s and +beta s, and the third's is its weight.
    pairs, beta, alpha = drawn(), 0.1, 0.3
    log_odds = (pairs.chosen_B - pairs.ref_chosen_B) - (pairs.rejected_B - pairs.ref_rejected_B)
    s = 1 / (1 + torch.exp(beta * log_odds))
    chosen, rejected, third = gradients(pairs, LossSettings(name=name, beta=beta, alpha=alpha))
    torch.testing.assert_close(chosen, -beta * s, rtol=0, atol=1e-14)
    torch.testing.assert_close(rejected, beta * s, rtol=0, atol=1e-14)
    torch.testing.assert_close(third, torch.full_like(third, TERMS[name](alpha, beta)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("place", "mine"), [("chosen_B", 0), ("rejected_B", 1)])
def test_selm_about_a_reply_of_the_pair_is_dpo_with_other_weights(place: str, mine: int) -> None:
    # beta (-s + alpha) where y is the chosen, beta (s + alpha) where it is the rejected reply: no third sequence.
    pairs, settings = drawn(), LossSettings(name="selm", beta=0.1, alpha=0.3)
    leaves = [value.clone().requires_grad_() for value in pairs[:2]]
    shared = PairLogprobs(*leaves, leaves[mine], *pairs[3:])
    found = torch.autograd.grad(pair_loss(shared, settings).sum(), leaves)
    s = torch.sigmoid(-0.1 * ((pairs.chosen_B - pairs.ref_chosen_B) - (pairs.rejected_B - pairs.ref_rejected_B)))
    expected = [-0.1 * s, 0.1 * s]
    expected[mine] = expected[mine] + 0.1 * 0.3
    for gradient, by_hand in zip(found, expected):
        torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_what_the_reference_thinks_of_the_third_reply_changes_no_gradient(name: str) -> None:
    pairs, settings = drawn(), LossSettings(name=name, alpha=0.3)
    without = pairs._replace(ref_third_B=torch.zeros(7, dtype=torch.float64))
    for one, other in zip(gradients(pairs, settings), gradients(without, settings)):
        assert torch.equal(one, other)


def test_selm_of_algorithm_1_is_without_beta() -> None:
    pairs = drawn()
    printed = LossSettings(name="selm", alpha=0.3, times_beta=False)
    assert torch.equal(pair_loss(pairs, printed), pair_loss(pairs, LossSettings(name="xpo", alpha=0.3)))


def test_vpo_is_pessimistic_offline() -> None:
    pairs = drawn()
    dpo = pair_loss(pairs, LossSettings())
    online = pair_loss(pairs, LossSettings(name="vpo", alpha=0.3)) - dpo
    offline = pair_loss(pairs, LossSettings(name="vpo", alpha=0.3, pessimistic=True)) - dpo
    torch.testing.assert_close(online, -offline, rtol=0, atol=1e-14)


def test_simpo_ipo_hinge_orpo_and_wrpo_by_hand() -> None:
    # Chosen: 4 tokens of probability 1/2; rejected: 2 tokens of 1/4; a source's reply of 5 tokens of 1/2.
    # The reference gives 1/2 to every token of each.
    ln2 = math.log(2)
    sums = [-4 * ln2, -4 * ln2, -5 * ln2, -4 * ln2, -2 * ln2, -5 * ln2]
    pairs = PairLogprobs(*(torch.tensor([value], dtype=torch.float64) for value in [*sums, 4, 2, 5]))

    def loss(name: str, **settings: float) -> float:
        return float(pair_loss(pairs, LossSettings(name=name, **settings)))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert loss("simpo", beta=2.0, gamma=0.5) == pytest.approx(-math.log(sigmoid(2 * ln2 - 0.5)))
    assert loss("ipo", beta=0.5) == pytest.approx((2 * ln2 - 1) ** 2)
    assert loss("hinge", beta=0.5) == pytest.approx(max(0, 1 - ln2))
    # odds: 1 to 1, and 1 to 3
    assert loss("orpo", beta=0.1) == pytest.approx(ln2 - 0.1 * math.log(sigmoid(math.log(3))))
    # r(s) = 0, r(w) = 0, r(l) = -2 ln 2 beta: moving weight from w to s changes nothing here
    assert loss("wrpo", beta=1.0, alpha=0.5) == pytest.approx(-math.log(sigmoid(2 * ln2)))


def test_wrpo_with_all_weight_on_the_source_is_dpo_on_its_reply() -> None:
    pairs = drawn()
    on_source = pairs._replace(chosen_B=pairs.third_B, ref_chosen_B=pairs.ref_third_B)
    torch.testing.assert_close(
        pair_loss(pairs, LossSettings(name="wrpo", alpha=1.0)), pair_loss(on_source, LossSettings())
    )


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    from consilience.config import parse

    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parse(wrong, LossSettings, where="loss")
    with pytest.raises(ConfigError, match="Did you mean 'selm'"):
        parse({"name": "slem"}, LossSettings, where="loss")
