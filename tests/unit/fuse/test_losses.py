"""The fusion losses against hand-worked numbers, torch's dense losses, and properties."""

from __future__ import annotations

from math import log

import pytest
import torch

from consilience.fuse.losses import LOSSES, after, chunk_loss, outcomes

THIRDS = torch.tensor([[0.5, 0.25, 0.25]]).log()  # a student over three tokens
NOTHING = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 0)
GOLD = torch.tensor([0])


def rows(ids: list[int], probs: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([ids]), torch.tensor([probs])


def loss_of(name: str, logits: torch.Tensor, ids: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    gold = torch.zeros(len(logits), dtype=torch.long)
    return LOSSES[name](outcomes(logits, gold, ids, probs), probs)


def test_cross_entropy_by_hand() -> None:
    # The teacher kept one token with 3/4; "any other" is 1/4 for the teacher and 1/2 for the student.
    expected = -0.75 * log(0.5) - 0.25 * log(0.5)
    assert loss_of("ce", THIRDS, *rows([0], [0.75])).item() == pytest.approx(expected, abs=1e-6)


def test_forward_kl_by_hand() -> None:
    expected = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert loss_of("kl", THIRDS, *rows([0], [0.75])).item() == pytest.approx(expected, abs=1e-6)


def test_padding_takes_no_token_out_of_the_rest() -> None:
    bare = loss_of("ce", THIRDS, *rows([1], [0.75]))
    padded = loss_of("ce", THIRDS, *rows([1, 0, 0], [0.75, 0.0, 0.0]))
    assert padded.item() == pytest.approx(bare.item(), abs=1e-7)


def test_a_complete_teacher_gives_torchs_dense_losses() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 7), torch.randn(5, 7).softmax(-1)
    ids = torch.arange(7).expand(5, 7)
    dense = torch.nn.functional.cross_entropy(logits, teacher, reduction="none")
    assert loss_of("ce", logits, ids, teacher) == pytest.approx(dense, abs=1e-5)
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="none").sum(-1)
    assert loss_of("kl", logits, ids, teacher) == pytest.approx(kl, abs=1e-5)


def test_the_gold_tokens_likelihood_is_torchs() -> None:
    torch.manual_seed(3)
    logits, gold = torch.randn(6, 9, requires_grad=True), torch.randint(9, (6,))
    nll = -outcomes(logits, gold, *(part.expand(6, -1) for part in NOTHING)).gold_N
    expected = torch.nn.functional.cross_entropy(logits, gold, reduction="none")
    assert nll.detach() == pytest.approx(expected.detach(), abs=1e-6)
    weights = torch.rand(6)
    (ours,) = torch.autograd.grad((weights * nll).sum(), logits)
    (torchs,) = torch.autograd.grad((weights * expected).sum(), logits)
    assert ours == pytest.approx(torchs, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_student_minus_teacher(loss: str) -> None:
    # With every outcome kept the gradient of both losses in the logits is softmax(student) - teacher.
    torch.manual_seed(1)
    logits = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4).softmax(-1)
    loss_of(loss, logits, torch.arange(4).expand(3, 4), teacher).sum().backward()
    assert logits.grad == pytest.approx((logits.softmax(-1) - teacher).detach(), abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_finite_at_saturation(loss: str) -> None:
    logits = torch.tensor([[80.0, -80.0, -80.0]], requires_grad=True)
    value = loss_of(loss, logits, *rows([0, 1], [0.6, 0.2]))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_kl_is_zero_where_student_and_teacher_agree() -> None:
    assert loss_of("kl", THIRDS, *rows([0, 1], [0.5, 0.25])).item() == pytest.approx(0, abs=1e-6)


def dense_outcomes(logits, gold, ids, probs, group):  # type: ignore[no-untyped-def]
    """The same by torch's own operations on dense tables."""
    logprobs = logits.log_softmax(-1)
    by_group = logprobs.exp() @ torch.nn.functional.one_hot(group, int(group.max()) + 1).to(logprobs.dtype)
    kept = torch.zeros_like(by_group).scatter(1, torch.where(probs > 0, ids, ids[:, :1]), 1.0)
    rest = (by_group * (1 - kept)).sum(-1).clamp_min(1e-30).log()
    return logprobs.gather(1, gold[:, None])[:, 0], by_group.gather(1, ids).log(), rest


@pytest.mark.parametrize("grouped", [False, True])
def test_values_and_gradient_are_those_of_the_dense_formula(grouped: bool) -> None:
    # A complete row, one that left much out, one with padding, and one that kept nothing.
    torch.manual_seed(5)
    ids = torch.tensor([[0, 1, 2, 3], [4, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0]])
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.2, 0.1, 0.1, 0.1], [0.7, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    probs, gold = probs.double(), torch.tensor([3, 0, 4, 6])
    logits = torch.randn(4, 8, dtype=torch.double, requires_grad=True)
    group = torch.tensor([0, 1, 2, 3, 4, 1, 5, 2]) if grouped else torch.arange(8)  # the sixth token has no group
    ours = (
        outcomes(logits, gold, ids, probs, torch.where(group == 5, -1, group), 5)
        if grouped
        else outcomes(logits, gold, ids, probs)
    )
    dense = dense_outcomes(logits, gold, ids, probs, group)
    asked = [torch.rand(4).double(), torch.rand(4, 4).double() * (probs > 0), torch.rand(4).double()]
    for mine, theirs, weight in zip(ours, dense, asked, strict=True):
        assert (mine * (weight > 0)).detach() == pytest.approx((theirs * (weight > 0)).detach(), abs=1e-12)
    sums = (sum((weight * part).sum() for weight, part in zip(asked, side)) for side in (ours, dense))
    (mine,), (theirs,) = (torch.autograd.grad(total, logits) for total in sums)
    assert mine == pytest.approx(theirs, abs=1e-12)


def test_groups_add_their_tokens() -> None:
    # Tokens 0 and 2 belong to group 1, token 1 to none: 1/2 + 1/4 for the group, 1/4 for the rest.
    seen = outcomes(THIRDS, GOLD, *rows([1], [0.5]), torch.tensor([1, -1, 1]), 2)
    assert (seen.kept_NJ.exp().item(), seen.rest_N.exp().item()) == pytest.approx((0.75, 0.25), abs=1e-6)


def test_after_multiplies_up_and_keeps_one_outcome_for_the_rest() -> None:
    seen = outcomes(THIRDS, GOLD, *rows([0, 1], [0.5, 0.25]))
    later = after(seen, torch.tensor([log(0.4)]))
    assert later.kept_NJ.exp()[0].tolist() == pytest.approx([0.2, 0.1], abs=1e-6)
    assert later.rest_N.exp().item() == pytest.approx(0.1 + 0.6, abs=1e-6)  # the third token, and another beginning
    same = after(seen, torch.tensor([0.0]))
    assert torch.cat([same.kept_NJ[0], same.rest_N]).exp().tolist() == pytest.approx([0.5, 0.25, 0.25], abs=1e-6)


def test_chunk_loss_by_hand() -> None:
    # Two coins: the teacher's falls on the chunk with 3/4, the student's with 1/2.
    expected = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert chunk_loss(torch.tensor([log(0.5)]), torch.tensor([log(0.75)])).item() == pytest.approx(expected, abs=1e-6)
    # At temperature 2 the coins fall with the square roots.
    p, q = 0.75**0.5, 0.5**0.5
    warm = 2 * (p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)))
    found = chunk_loss(torch.tensor([log(0.5)]), torch.tensor([log(0.75)]), temperature=2.0)
    assert found.item() == pytest.approx(warm, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_chunk_loss_is_zero_at_equality_and_finite_at_the_ends(temperature: float) -> None:
    logprobs = torch.tensor([-1e-9, -0.5, -40.0], requires_grad=True)
    assert chunk_loss(logprobs, logprobs.detach(), temperature).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    chunk_loss(logprobs, torch.tensor([-40.0, -0.5, -1e-9]), temperature).sum().backward()
    assert torch.isfinite(logprobs.grad).all()
