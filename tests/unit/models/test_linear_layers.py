"""Linear layers over weights laid out ahead: the same products, and nothing else of a model changes."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from consilience.models import linear
from consilience.models.linear import lay_out


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SMALLEST", 1)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), Conv1D(16, 40), nn.Linear(16, 8, bias=False))


def copied(model: nn.Sequential) -> nn.Sequential:
    other = layers()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (9,), (2, 5), (0,)], ids=str)
def test_products_are_those_of_torch_in_float64(shape: tuple[int, ...]) -> None:
    model = layers()
    lay_out(model)
    x = torch.randn(*shape, 24)
    exact = copied(model).double()(x.double())
    with torch.no_grad():
        torch.testing.assert_close(model(x).double(), exact, atol=1e-6, rtol=1e-6)


def test_changed_weights_are_followed() -> None:
    model = layers()
    lay_out(model)
    x = torch.randn(6, 24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
        torch.testing.assert_close(model(x), copied(model)(x))
    model[0].weight = nn.Parameter(torch.zeros(40, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(x), copied(model)(x))


def test_weights_put_elsewhere_are_followed() -> None:
    model = layers()
    lay_out(model)
    version = model[1].weight._version
    model[1].weight.data = torch.randn(40, 16)
    assert model[1].weight._version == version  # which does not tell of it
    x = torch.randn(6, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(x), copied(model)(x))


def test_gradients_and_half_precision_take_torchs_way() -> None:
    model = layers()
    lay_out(model)
    x = torch.randn(6, 24)
    model(x).sum().backward()
    plain = copied(model)
    plain(x).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), plain(x))


def test_a_copy_has_weights_of_its_own() -> None:
    model = layers()
    lay_out(model)
    other = copy.deepcopy(model)
    x = torch.randn(6, 24)
    with torch.no_grad():
        torch.testing.assert_close(other(x), copied(model)(x))
        for parameter in other.parameters():
            parameter.zero_()
        assert other(x).abs().max() == 0
        assert model(x).abs().max() > 0


def test_state_and_names_stay() -> None:
    model, plain = layers(), layers()
    lay_out(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


def test_without_room_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_free_memory", lambda: 2 * 4 * (24 * 40 + 40 * 16 + 16 * 8) - 1)
    model = layers()
    lay_out(model)
    assert all("forward" not in vars(module) for module in model)
