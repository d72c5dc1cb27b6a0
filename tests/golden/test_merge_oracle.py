"""Every mergekit YAML of ../shared/checks/merging, merged by our command, against the float64 statement of its formula.

float32: no weight further than 1e-6 from the exact one. bfloat16: at most the share of weights that mergekit 0.1.5
does not round correctly (MERGEKIT, measured on the same files; `oracle.py` prints it). By default on the tensors of
two of the four layers and the last norm, of models without embeddings and head; the slow run takes all.

Where the oracle has no formula it is stated here: multislerp, arcee_fusion, the stack of layers, other vocabularies.
Which entries DARE and DELLA kept is read from merges with the same seed in which one model has all the weight.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKS = Path(__file__).parents[3] / "shared" / "checks" / "merging"
pytestmark = pytest.mark.skipif(
    not (CHECKS / "oracle.py").is_file(), reason="no ../shared/checks/merging beside the repo"
)

Consilience = Callable[..., Any]
Weights = dict[str, Tensor]
Tree = dict[str, Any]

# Of the README beside oracle.py: dtype, standard deviation of the changes, MB of a shard.
FIXTURES = {
    "f32": ("float32", "5e-3", "6"),
    "f32small": ("float32", "2e-4", "6"),
    "bf16": ("bfloat16", "1e-3", "3"),
}
LAYERS = 4
PARTLY = re.compile(r"model\.(layers\.[13]\.|norm\.)")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # two thirds of the weights
TOLERANCE = 1e-6
NO_PEER = 0.01  # mergekit stops (multislerp_base), or draws its quantiles at random (arcee_fusion): nearly all right

# Share of weights, in per cent, that mergekit 0.1.5 does not round correctly: over PARTLY, over all tensors.
MERGEKIT = {
    "arcee_fusion": (NO_PEER, NO_PEER),
    "breadcrumbs": (3.9115, 2.3678),
    "breadcrumbs_ties": (3.4858, 2.0392),
    "dare_linear": (11.2335, 10.7376),
    "dare_linear_single": (5.5432, 3.1474),
    "dare_ties": (11.5373, 11.5715),
    "dare_ties_norescale": (2.6218, 1.5377),
    "della": (14.3204, 10.238),
    "della_linear": (8.2943, 5.4995),
    "karcher": (72.9426, 54.0395),
    "karcher_tight": (72.9423, 54.0264),
    "linear": (0.6549, 0.6633),
    "linear_gradient_filter": (0.7922, 0.1826),
    "linear_nonorm": (0.4183, 0.4129),
    "model_stock": (40.5682, 12.7886),
    "model_stock_filterwise": (34.3985, 33.3325),
    "multislerp": (53.7658, 61.1459),
    "multislerp_base": (NO_PEER, NO_PEER),
    "nearswap": (9.8689, 3.3721),
    "nuslerp": (29.666, 24.7441),
    "nuslerp_base": (8.8073, 5.5479),
    "nuslerp_rows_base": (9.1003, 5.8927),
    "passthrough_stack": (0, 0),
    "ram": (3.2613, 1.3924),
    "ramplus_tl": (12.5437, 17.4167),
    "sce_0.1": (1.5106, 0.9085),
    "sce_0.5": (6.8498, 3.9185),
    "sce_1.0": (10.5254, 6.3495),
    "slerp": (0.0076, 0.0092),
    "slerp_gradient": (0.0069, 0.0022),
    "task_arithmetic": (4.6314, 2.9247),
    "task_arithmetic_lambda": (9.6507, 6.158),
    "ties": (5.3783, 3.1675),
    "ties_d20_nonorm_int8": (1.9227, 1.1442),
    "ties_rescale_lambda": (39.4215, 39.7601),
}


class Merged(NamedTuple):
    """The recipe, the weights that our command left, and those of each input, by the name of its folder."""

    recipe: Tree
    ours: Weights
    inputs: Callable[[str], Weights]


class Exact(NamedTuple):
    """The exact weights in float64, and where both of two outcomes are right: entries that tie with a threshold."""

    weights: Tensor
    tied: Tensor | None = None


def names_of(fixture: str) -> list[str]:
    return sorted(path.stem for path in (CHECKS / "configs" / fixture).glob("*.yml"))


CASES = [(fixture, name) for fixture in FIXTURES for name in names_of(fixture)]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    threads = torch.get_num_threads()
    module: Any = load(CHECKS / "oracle.py")
    module.HERE = str(tmp_path_factory.mktemp("merging"))
    module.SCE_EPS = 0.0  # the formula: equal coefficients only where nothing changed
    shutil.copytree(CHECKS / "configs", Path(module.HERE) / "configs")
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def inputs(oracle: Any) -> Callable[[str, bool], Path]:
    """The folder with base, ft0, ft1, ft2 of a fixture (and ft1tok, six tokens more), with or without TABLES."""
    generator: Any = load(CHECKS / "gen_ckpt.py")

    @cache
    def folder_of(fixture: str, whole: bool) -> Path:
        folder = Path(oracle.HERE) / "inputs" / fixture
        if not whole:
            return without_tables(folder_of(fixture, True), Path(oracle.HERE) / "layers" / fixture)
        dtype, sigma, shard_mb = FIXTURES[fixture]
        words = f"gen_ckpt {folder} tiny --dtype {dtype} --sigma {sigma} --shard-mb {shard_mb} --seed 7"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words.split())
            generator.main()
            if fixture == "f32":
                patch.setattr("sys.argv", ["make_tok", str(folder / "ft1"), str(folder / "ft1tok")])
                load(CHECKS / "make_tok.py")
        return folder

    return folder_of


def without_tables(whole: Path, folder: Path) -> Path:
    for model in ("base", "ft0", "ft1", "ft2"):
        (folder / model).mkdir(parents=True)
        weights = {name: tensor for name, tensor in weights_in(whole / model).items() if name not in TABLES}
        save_file(weights, folder / model / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(whole / model / "config.json", folder / model)
    return folder


@pytest.fixture
def merge(consilience: Consilience, inputs: Callable[[str, bool], Path], tmp_path: Path) -> Callable[..., Merged]:
    """`merge(fixture, name, whole)` runs a case; `edit` may change its YAML first."""

    def run(fixture: str, name: str, whole: bool, edit: Callable[[Tree], Any] = lambda tree: None) -> Merged:
        folder = inputs(fixture, whole)
        tree = tree_of(fixture, name, folder)
        edit(tree)
        recipe, out = tmp_path / "case.yml", tmp_path / "out"
        recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
        answer = consilience("merge", recipe, out)
        assert answer.code == 0, answer.err
        ours = weights_in(out)
        shutil.rmtree(out)
        return Merged(tree, ours, cache(lambda model: weights_in(folder / model)))

    return run


def tree_of(fixture: str, name: str, inputs: Path) -> Tree:
    tree: Tree = yaml.safe_load(
        (CHECKS / "configs" / fixture / f"{name}.yml").read_text().replace("__IN__", str(inputs))
    )
    return tree


def weights_in(folder: Path) -> Weights:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(("fixture", "name"), CASES)
def test_two_layers(fixture: str, name: str, oracle: Any, merge: Callable[..., Merged]) -> None:
    compare(fixture, name, oracle, merge, column=0)


@pytest.mark.slow
@pytest.mark.parametrize(("fixture", "name"), CASES)
def test_every_tensor(fixture: str, name: str, oracle: Any, merge: Callable[..., Merged]) -> None:
    compare(fixture, name, oracle, merge, column=1)


def compare(fixture: str, name: str, oracle: Any, merge: Callable[..., Merged], *, column: int) -> None:
    whole = column == 1 or name.startswith("tok_")
    merged = merge(fixture, name, whole)
    case = oracle.Case(fixture, name, "")
    case.c = merged.recipe
    if name.startswith(("dare", "della")):
        case.masks = kept_entries(fixture, name, whole, merge, merged)
    assert set(merged.ours) == expected_names(name, merged)
    wrong = entries = 0
    for tensor, ours in merged.ours.items():
        if not (whole or PARTLY.search(tensor)):
            continue
        exact = exact_weights(oracle, case, tensor, merged)
        assert ours.shape == exact.weights.shape, tensor
        ties = torch.zeros_like(ours, dtype=torch.bool) if exact.tied is None else exact.tied
        if ours.dtype == torch.float32:
            assert float((ours.double() - exact.weights).abs().masked_fill(ties, 0).max()) <= TOLERANCE, tensor
        else:
            assert ours.dtype == torch.bfloat16
            wrong += int(((ours != exact.weights.bfloat16()) & ~ties).sum())
        entries += ours.numel()
    if fixture == "bf16":
        assert 100 * wrong / entries <= MERGEKIT[name][column]


def expected_names(name: str, merged: Merged) -> set[str]:
    names = set(merged.inputs("ft0"))
    if name == "passthrough_stack":  # layers 0-2 of ft0, then 1-3 of ft1
        one = {tensor for tensor in names if ".layers.0." in tensor}
        names |= {tensor.replace(".0.", f".{layer}.") for tensor in one for layer in range(6)}
    return names


def exact_weights(oracle: Any, case: Any, tensor: str, merged: Merged) -> Exact:
    """The exact merge of one tensor."""
    if case.name.startswith("tok_"):
        return other_vocabulary(oracle, case, tensor, merged)
    if case.name == "passthrough_stack":
        return stacked(tensor, merged.inputs)
    models = [entry["model"].rsplit("/")[-1] for entry in case.c.get("models", [])]
    tensors = [merged.inputs(model)[tensor].double() for model in models]
    base = merged.inputs("base")[tensor].double() if "base_model" in case.c else None
    if case.name.startswith("multislerp"):
        weights = [entry["parameters"]["weight"] for entry in case.c["models"]]
        return Exact(multislerp(tensors, weights, base))
    if case.name == "arcee_fusion":
        assert base is not None
        return arcee_fusion(base, tensors[0])
    return Exact(*oracle.exact(case, tensor))


# -- formulas that the oracle does not state ---------------------------------------------------------------------------


def multislerp(tensors: list[Tensor], weights: list[float], base: Tensor | None, eps: float = 1e-8) -> Tensor:
    """Weighted mean in the tangent space at the normalised weighted mean of the unit vectors, times the mean norm.

    Models that do not differ from the base leave it as it is; mergekit stops there with an error.
    """
    vectors = [(tensor if base is None else tensor - base).flatten() for tensor in tensors]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    norms = torch.stack([vector.norm() for vector in vectors])
    if base is not None and not norms.any():
        return base
    units = torch.stack([vector / (norm + eps) for vector, norm in zip(vectors, norms)])
    mean = shares @ units
    mean /= mean.norm()
    tangent = shares @ (units - (units @ mean)[:, None] * mean)
    angle = tangent.norm() + eps
    point = mean * torch.cos(angle) + tangent * (torch.sin(angle) / angle)
    result = (point * (shares @ norms)).reshape(tensors[0].shape)
    return result if base is None else base + result


def arcee_fusion(base: Tensor, model: Tensor) -> Exact:
    """|delta| times the row's KL of softmaxes; from median + 1.5 interquartile ranges on, the model's value counts."""
    p, q = model.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    score = (model - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = score.flatten().sort().values
    low, middle, high = (ordered[int(share * (ordered.numel() - 1))] for share in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    # The KL of two nearly equal rows is a small difference of large terms: in float32 it has four or five digits.
    return Exact(torch.where(score >= threshold, model, base), (score / threshold - 1).abs() < 1e-3)


def stacked(tensor: str, inputs: Callable[[str], Weights]) -> Exact:
    """Layers 0-2 are ft0's and 3-5 are ft1's layers 1-3, whose down projections are halved (a power of two: exact)."""
    found = re.search(r"layers\.(\d)\.", tensor)
    layer = int(found.group(1)) if found else (0 if "embed" in tensor else 5)
    if layer < 3:
        return Exact(inputs("ft0")[tensor].double())
    source = tensor.replace(f"layers.{layer}.", f"layers.{layer - 2}.")
    return Exact(inputs("ft1")[source].double() * (0.5 if "down_proj" in tensor else 1.0))


def other_vocabulary(oracle: Any, case: Any, tensor: str, merged: Merged) -> Exact:
    """ft1tok has six tokens more. With the base's tokenizer they go; with the union, who lacks a row takes ft1tok's."""
    union = case.name.startswith("tok_union")

    def rows(model: str) -> Tensor:
        own, extended = merged.inputs(model)[tensor], merged.inputs("ft1tok")[tensor]
        if "embed_tokens" not in tensor and "lm_head" not in tensor:
            return own.double()
        return (torch.cat([own[:8000], extended[8000:]]) if union else own[:8000]).double()

    models = case.c["models"]
    tensors = [rows(entry["model"].rsplit("/")[-1]) for entry in models]
    base = rows("base") if "base_model" in case.c else None
    parameters = [entry["parameters"] for entry in models]
    return Exact(
        *oracle.merge(case, tensor, tensors, base, parameters, lambda _, default=None: default, case.c["merge_method"])
    )


# -- what the random methods kept --------------------------------------------------------------------------------------


def kept_entries(
    fixture: str, name: str, whole: bool, merge: Callable[..., Merged], merged: Merged
) -> dict[str, list[Tensor]]:
    """Per tensor and model, the entries of the delta that were kept: those that moved when the others weigh nothing.

    A delta that is exactly 0 moves nothing and needs no mask. Checks the shares that were kept on the way.
    """
    masks: dict[str, list[Tensor]] = {tensor: [] for tensor in merged.ours}
    for number, entry in enumerate(merged.recipe["models"]):
        ranks, kept = [], []
        for tensor, ours in merge(fixture, name, whole, partial(all_weight_to, number)).ours.items():
            base, model = merged.inputs("base")[tensor], merged.inputs(f"ft{number}")[tensor]
            mask = ours != base  # base + delta is the model itself, so every kept change is seen
            masks[tensor].append(mask)
            changed = model != base
            if model.dim() > 1 and PARTLY.search(tensor):
                ranks.append(middle_ranks((model.double() - base.double()).abs())[changed])
                kept.append(mask[changed].double())
        check_shares(torch.cat(ranks), torch.cat(kept), entry["parameters"])
    return masks


def all_weight_to(number: int, tree: Tree) -> None:
    """The plain sum of what was kept, with weight 1 for one model and 0 for the others."""
    tree["merge_method"] = "dare_linear" if tree["merge_method"].startswith("dare") else "della_linear"
    tree["parameters"] = {"rescale": False}
    for place, entry in enumerate(tree["models"]):
        entry["parameters"]["weight"] = 1.0 if place == number else 0.0


def middle_ranks(sizes: Tensor) -> Tensor:
    """Rank of every entry in its row, from 0 for the smallest to 1; equal entries share the middle of their ranks."""
    ordered = sizes.sort(-1).values
    below = torch.searchsorted(ordered, sizes.contiguous())
    not_above = torch.searchsorted(ordered, sizes.contiguous(), right=True)
    return (below + not_above - 1) / 2 / (sizes.shape[-1] - 1)


def check_shares(rank: Tensor, kept: Tensor, parameters: dict[str, float]) -> None:
    """Kept: `density` of the entries; with DELLA density - epsilon of a row's smallest to + epsilon of its largest."""
    slope = 2 * parameters.get("epsilon", 0.0)
    for low in (0.0, 0.25, 0.5, 0.75):
        here = (rank >= low) & (rank <= low + 0.25)
        expected = parameters["density"] + slope * (float(rank[here].mean()) - 0.5)
        error = math.sqrt(expected * (1 - expected) / int(here.sum()))
        assert abs(float(kept[here].mean()) - expected) < 5 * error
