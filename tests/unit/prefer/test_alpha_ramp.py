"""How alpha grows in a round: by hand, and as WRPO's released code has it."""

from __future__ import annotations

import math

import pytest
import torch

from consilience.prefer.losses import LossSettings, PairLogprobs, pair_loss


@pytest.mark.parametrize(
    ("settings", "progress", "alpha"),
    [
        # WRPO's code, LinearDecayScheduler(start_value=0, end_value=alpha, start_step=0, end_step=all of them)
        ({"name": "wrpo"}, 0.0, 0.0),
        ({"name": "wrpo"}, 0.25, 0.025),
        ({"name": "wrpo"}, 1.0, 0.1),
        ({"name": "wrpo", "alpha_ramp": 0.1}, 0.05, 0.05),
        ({"name": "wrpo", "alpha_ramp": 0.1}, 0.1, 0.1),
        ({"name": "wrpo", "alpha_ramp": 0.1}, 0.7, 0.1),
        ({"name": "wrpo", "alpha_ramp": 0}, 0.0, 0.1),
        ({"name": "selm"}, 0.0, 0.1),
        ({"name": "selm", "alpha_ramp": 0.5}, 0.25, 0.05),
    ],
)
def test_alpha_by_hand(settings: dict[str, object], progress: float, alpha: float) -> None:
    assert LossSettings(alpha=0.1, **settings).at(progress).alpha == pytest.approx(alpha)  # type: ignore[arg-type]


def test_wrpos_loss_on_the_way_by_hand() -> None:
    """r(w) = 0.2, r(l) = -0.1, r(s) = 0.4; half way alpha is 0.25: 0.25 * 0.4 + 0.75 * 0.2 + 0.1 = 0.35."""
    one = [torch.tensor([value]) for value in (-10.0, -20.0, -30.0, -12.0, -19.0, -34.0, 1.0, 1.0, 1.0)]
    settings = LossSettings(name="wrpo", alpha=0.5, beta=0.1)
    (loss,) = pair_loss(PairLogprobs(*one), settings.at(0.5)).tolist()
    assert loss == pytest.approx(math.log(1 + math.exp(-0.35)), abs=1e-6)
    (first,) = pair_loss(PairLogprobs(*one), settings.at(0.0)).tolist()
    assert first == pytest.approx(math.log(1 + math.exp(-0.3)), abs=1e-6)  # DPO on the policy's own pair
