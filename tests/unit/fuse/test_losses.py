"""The fusion losses against hand-worked numbers, torch's dense losses, and properties."""

from __future__ import annotations

from math import log

import pytest
import torch

from consilience.fuse.losses import (
    LOSSES,
    _SparseCrossEntropy,
    after,
    chunk_loss,
    cross_entropy,
    forward_kl,
    gold_nll,
    over_pieces,
)

THIRDS = torch.tensor([[0.5, 0.25, 0.25]]).log()  # a student over three tokens


def rows(ids: list[int], probs: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([ids]), torch.tensor([probs])


def test_cross_entropy_by_hand() -> None:
    # The teacher kept one token with 3/4; "any other" is 1/4 for the teacher and 1/2 for the student.
    expected = -0.75 * log(0.5) - 0.25 * log(0.5)
    assert cross_entropy(THIRDS, *rows([0], [0.75])).item() == pytest.approx(expected, abs=1e-6)


def test_forward_kl_by_hand() -> None:
    expected = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert forward_kl(THIRDS, *rows([0], [0.75])).item() == pytest.approx(expected, abs=1e-6)


def test_padding_takes_no_token_out_of_the_rest() -> None:
    bare = cross_entropy(THIRDS, *rows([1], [0.75]))
    padded = cross_entropy(THIRDS, *rows([1, 0, 0], [0.75, 0.0, 0.0]))
    assert padded.item() == pytest.approx(bare.item(), abs=1e-7)


def test_a_complete_teacher_gives_torchs_dense_losses() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(5, 7), torch.randn(5, 7).softmax(-1)
    ids = torch.arange(7).expand(5, 7)
    dense = torch.nn.functional.cross_entropy(logits, teacher, reduction="none")
    assert cross_entropy(logits, ids, teacher) == pytest.approx(dense, abs=1e-5)
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="none").sum(-1)
    assert forward_kl(logits, ids, teacher) == pytest.approx(kl, abs=1e-5)


def test_gold_nll_is_torchs() -> None:
    assert gold_nll(THIRDS, torch.tensor([0])).item() == pytest.approx(log(2), abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradient_is_student_minus_teacher(loss: object) -> None:
    # With every outcome kept the gradient of both losses in the logits is softmax(student) - teacher.
    torch.manual_seed(1)
    logits = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4).softmax(-1)
    loss(logits, torch.arange(4).expand(3, 4), teacher).sum().backward()  # type: ignore[operator]
    assert logits.grad == pytest.approx((logits.softmax(-1) - teacher).detach(), abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradient_is_finite_at_saturation(loss: object) -> None:
    logits = torch.tensor([[80.0, -80.0, -80.0]], requires_grad=True)
    value = loss(logits, *rows([0, 1], [0.6, 0.2]))  # type: ignore[operator]
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_kl_is_zero_where_student_and_teacher_agree() -> None:
    assert forward_kl(THIRDS, *rows([0, 1], [0.5, 0.25])).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_is_that_of_the_formula() -> None:
    # A complete row, one that left much out, one with padding, and one that kept nothing: against finite differences.
    torch.manual_seed(5)
    ids = torch.tensor([[0, 1, 2, 3], [4, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0]])
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.2, 0.1, 0.1, 0.1], [0.7, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    logits = torch.randn(4, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: _SparseCrossEntropy.apply(z, ids, probs.double()), [logits])


def test_over_pieces_adds_the_tokens_of_a_piece() -> None:
    # Tokens 0 and 2 begin with piece 1, token 1 with none: 1/2 + 1/4 for the piece, 1/4 for "no piece".
    logprobs = over_pieces(THIRDS, torch.tensor([1, -1, 1]), 2)
    assert logprobs.exp()[0].tolist() == pytest.approx([0.0, 0.75, 0.25], abs=1e-6)


def test_over_pieces_with_every_token_its_own_piece_changes_nothing() -> None:
    torch.manual_seed(2)
    logits = torch.randn(4, 6)
    logprobs = over_pieces(logits, torch.arange(6), 6)
    assert logprobs[:, :6] == pytest.approx(logits.log_softmax(-1), abs=1e-6)


def test_after_multiplies_up_and_keeps_one_outcome_for_the_rest() -> None:
    probs = after(THIRDS, torch.tensor([log(0.4)])).exp()[0]
    assert probs.tolist() == pytest.approx([0.2, 0.1, 0.1, 0.6], abs=1e-6)
    assert after(THIRDS, torch.tensor([0.0])).exp()[0].tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0], abs=1e-6)


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
