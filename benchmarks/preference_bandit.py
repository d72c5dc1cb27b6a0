"""What exploration is worth where all is known: 40 log-linear bandits in one tensor, every arm on the same draws.

    python benchmarks/preference_bandit.py [--seeds 40] [--first 1000] [--json]

64 prompts, 32 replies, 32 features; the start policy is a softmax that knows nothing of the reward. Three rounds of 128
prompts: the policy says y, a Bradley-Terry annotator ranks {y, offline pair}, best and worst are learnt from in 15 full
gradient steps, reference = the policy before the round. The value of a policy is its expected reward, 0 for the start
policy and 1 for always the best reply. Differences are paired over bandits; intervals are Student's t at 95 %.

Shapes: S bandits, X prompts, K replies, D features, N prompts of a round, C candidates of a prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from consilience.stats import Estimate, difference, mean

X, K, D, N, ROUNDS, STEPS = 64, 32, 32, 128, 3, 15
ANNOTATOR = 3.0  # labels with odds exp(this * difference in reward)
SHARPNESS = 1.5
MEMBERS = 8  # of an ensemble
MOST = 2 * N  # prompts of a round, of the arm that has twice as many


@dataclass(frozen=True)
class Arm:
    """One way to run the rounds. `learning_rate` has beta in it, as in the table of SELM's reference experiment."""

    learning_rate: float = 3.0
    beta: float = 0.1
    alpha: float = 0.0
    temperature: float = 0.0  # of y; 0: greedy
    samples: int = 1
    offline_pair: bool = True
    offline: bool = False  # no y at all
    bonus: float = 0.0  # of an elliptical (count-like) bonus on y's logit
    ensemble: bool = False  # y is the favourite of a random member
    implicit: bool = False  # of the samples only the one with the largest implicit reward is judged
    prompts: int = N  # of a round
    data_from: str | None = None


@dataclass
class World:
    """S bandits and every draw that the rounds will need, the same for all arms."""

    features_SXKD: Tensor
    reward_SXK: Tensor
    start_SD: Tensor
    draws: torch.Generator
    prompts: list[Tensor] = field(default_factory=list)
    pairs: list[Tensor] = field(default_factory=list)
    gumbel_sample: list[Tensor] = field(default_factory=list)
    gumbel_label: list[Tensor] = field(default_factory=list)


def make_world(seeds: int, first: int, most_samples: int) -> World:
    draws = torch.Generator().manual_seed(first)
    normal = lambda *shape: torch.randn(*shape, generator=draws, dtype=torch.float64)  # noqa: E731
    features = normal(seeds, X, K, D) / D**0.5
    reward = torch.einsum("sxkd,sd->sxk", features, normal(seeds, D))
    world = World(features, reward, SHARPNESS * normal(seeds, D), draws)
    log_start_SXK = policy(world, world.start_SD)
    for _ in range(ROUNDS):
        prompt_SN = torch.randint(0, X, (seeds, MOST), generator=draws)
        world.prompts.append(prompt_SN)
        at_prompts = rows(log_start_SXK, prompt_SN).exp().flatten(0, 1)
        pair = torch.multinomial(at_prompts.float(), 2, replacement=True, generator=draws)
        world.pairs.append(pair.unflatten(0, (seeds, MOST)))
        world.gumbel_sample.append(gumbel(draws, seeds, MOST, most_samples, K))
        world.gumbel_label.append(gumbel(draws, seeds, MOST, most_samples + 2))
    return world


def gumbel(draws: torch.Generator, *shape: int) -> Tensor:
    return -torch.empty(*shape, dtype=torch.float64).exponential_(generator=draws).log()


def policy(world: World, theta_SD: Tensor) -> Tensor:
    """Log-probabilities of all replies to all prompts, [S, X, K]."""
    return torch.einsum("sxkd,sd->sxk", world.features_SXKD, theta_SD).log_softmax(-1)


def rows(value_SX: Tensor, prompt_SN: Tensor) -> Tensor:
    """The rows of a [S, X, ...] at the prompts of a round."""
    return value_SX[torch.arange(len(value_SX))[:, None], prompt_SN]


def value(world: World, theta_SD: Tensor) -> Tensor:
    """Expected reward: 0 for the start policy, 1 for the best replies, shape [S]."""
    of = lambda theta: (policy(world, theta).exp() * world.reward_SXK).sum(-1).mean(-1)  # noqa: E731
    start, best = of(world.start_SD), world.reward_SXK.max(-1).values.mean(-1)
    return (of(theta_SD) - start) / (best - start)


@dataclass
class Collected:
    """What a round collected: best, worst and y of every prompt, [S, N] each."""

    best: Tensor
    worst: Tensor
    y: Tensor


def collect(world: World, arm: Arm, t: int, theta_SD: Tensor, members_SMD: Tensor, seen_SDD: Tensor) -> Collected:
    prompt_SN, pair_SN2 = world.prompts[t][:, : arm.prompts], world.pairs[t][:, : arm.prompts]
    reward_SNK = rows(world.reward_SXK, prompt_SN)
    log_SNK = rows(policy(world, theta_SD), prompt_SN)
    if arm.offline:
        candidates = pair_SN2
        y = pair_SN2[..., 0]
    else:
        wish_SNK = log_SNK
        features_SNKD = rows(world.features_SXKD, prompt_SN)
        if arm.bonus:
            around = features_SNKD - torch.einsum("snk,snkd->snd", log_SNK.exp(), features_SNKD)[:, :, None]
            width = torch.einsum("snkd,sde,snke->snk", around, torch.linalg.inv(seen_SDD), around).clamp_min(0).sqrt()
            wish_SNK = log_SNK + arm.bonus * width
        if arm.ensemble:
            member_SN = torch.arange(arm.prompts).expand_as(prompt_SN) % MEMBERS
            chosen_SND = members_SMD[torch.arange(len(prompt_SN))[:, None], member_SN]
            wish_SNK = torch.einsum("snkd,snd->snk", features_SNKD, chosen_SND)
        noise = world.gumbel_sample[t][:, : arm.prompts, : arm.samples]
        scaled = wish_SNK[:, :, None] / (arm.temperature or 1.0)
        y_SNC = (scaled + (noise if arm.temperature else 0.0)).argmax(-1)
        if arm.implicit:
            gain_SNK = log_SNK - rows(policy(world, world.start_SD), prompt_SN)
            best_of = gain_SNK.gather(-1, y_SNC).argmax(-1, keepdim=True)
            y_SNC = y_SNC.gather(-1, best_of)
        y = y_SNC[..., 0]
        candidates = torch.cat([pair_SN2, y_SNC], -1) if arm.offline_pair else y_SNC
    labels = (
        ANNOTATOR * reward_SNK.gather(-1, candidates) + world.gumbel_label[t][:, : arm.prompts, : candidates.shape[-1]]
    )
    best, worst = (candidates.gather(-1, at(-1, keepdim=True))[..., 0] for at in (labels.argmax, labels.argmin))
    return Collected(best, worst, y)


def learn(
    world: World, arm: Arm, t: int, theta_SD: Tensor, data: Collected, weights_SN: Tensor | None = None
) -> Tensor:
    """15 full steps of DPO, with SELM's term where alpha is not 0."""
    prompt_SN = world.prompts[t][:, : arm.prompts]
    features_SNKD = rows(world.features_SXKD, prompt_SN)
    pick = lambda k: features_SNKD.gather(2, k[..., None, None].expand(*k.shape, 1, D))[:, :, 0]  # noqa: E731
    apart_SND, y_SND = pick(data.best) - pick(data.worst), pick(data.y)
    reference = theta_SD
    for _ in range(STEPS):
        margin_SN = arm.beta * torch.einsum("snd,sd->sn", apart_SND, theta_SD - reference)
        pull_SN = torch.sigmoid(-margin_SN) * (1.0 if weights_SN is None else weights_SN)
        step_SD = torch.einsum("sn,snd->sd", pull_SN, apart_SND) / arm.prompts
        if arm.alpha:
            chances = rows(policy(world, theta_SD), prompt_SN).exp()
            step_SD = step_SD - arm.alpha * (y_SND - torch.einsum("snk,snkd->snd", chances, features_SNKD)).mean(1)
        theta_SD = theta_SD + arm.learning_rate * step_SD
    return theta_SD


def run(world: World, arm: Arm, given: list[Collected] | None) -> tuple[list[Tensor], list[Collected]]:
    """The value after every round, and what was collected."""
    theta_SD = world.start_SD
    members_SMD = theta_SD[:, None].expand(-1, MEMBERS, -1).clone()
    seen_SDD = torch.eye(D, dtype=torch.float64).expand(len(theta_SD), D, D).clone()
    bootstrap = torch.Generator().manual_seed(1)
    values, collected = [], []
    for t in range(ROUNDS):
        data = given[t] if given else collect(world, arm, t, theta_SD, members_SMD, seen_SDD)
        collected.append(data)
        if arm.ensemble:
            for m in range(MEMBERS):
                weights = torch.empty(len(theta_SD), arm.prompts, dtype=torch.float64).exponential_(generator=bootstrap)
                members_SMD[:, m] = learn(world, arm, t, members_SMD[:, m], data, weights)
        features_SNKD = rows(world.features_SXKD, world.prompts[t][:, : arm.prompts])
        pick = lambda k: features_SNKD.gather(2, k[..., None, None].expand(*k.shape, 1, D))[:, :, 0]  # noqa: B023, E731
        apart = pick(data.best) - pick(data.worst)
        seen_SDD = seen_SDD + torch.einsum("snd,sne->sde", apart, apart)
        theta_SD = learn(world, arm, t, theta_SD, data)
        values.append(value(world, theta_SD))
    return values, collected


def arms_of(base: Arm) -> dict[str, Arm]:
    arms = {"online DPO": base, "offline DPO": replace(base, offline=True)}
    for alpha in (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.4):
        arms[f"SELM alpha {alpha:g}"] = replace(base, alpha=alpha)
        arms[f"SELM alpha {alpha:g}, replay"] = replace(base, alpha=alpha, data_from="online DPO")
    for times in (1.25, 1.5, 2.0, 10.0):
        arms[f"step x{times:g}"] = replace(base, learning_rate=base.learning_rate * times)
    arms["twice the prompts"] = replace(base, prompts=2 * N)  # as many labels as four samples and the pair
    for temperature in (0.5, 1.0, 2.0, 3.0):
        arms[f"temperature {temperature:g}"] = replace(base, temperature=temperature)
    for samples in (2, 4, 8):
        for temperature in (1.0, 2.0):
            name = f"{samples} samples, temperature {temperature:g}"
            arms[name] = replace(base, temperature=temperature, samples=samples)
            arms[f"{name}, no offline pair"] = replace(arms[name], offline_pair=False)
    arms["best of 8 by implicit reward"] = replace(base, temperature=1.0, samples=8, implicit=True)
    for bonus in (0.3, 1.0, 3.0):
        arms[f"count-like bonus {bonus:g}"] = replace(base, bonus=bonus)
    arms["ensemble of 8"] = replace(base, ensemble=True)
    return arms


BASES = {"small step": Arm(), "tuned step": Arm(learning_rate=30.0, beta=0.3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first", type=int, default=1000, help="seed of all draws")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for step, base in BASES.items():
        world = make_world(options.seeds, options.first, most_samples=8)
        values: dict[str, list[Estimate]] = {}
        collected: dict[str, list[Collected]] = {}
        for name, arm in arms_of(base).items():
            by_round, collected[name] = run(world, arm, collected[arm.data_from] if arm.data_from else None)
            values[name] = [mean(value_S.numpy(), unit_kind="bandits") for value_S in by_round]
        found[step] = table(values, step)
    if options.json:
        print(json.dumps(found))


def table(values: dict[str, list[Estimate]], step: str) -> dict[str, Any]:
    rows_of: dict[str, Any] = {}
    print(f"\n{step}\n{'':38s}{'round 1':>9s}{'round 2':>9s}{'round 3':>9s}   minus online DPO       exploration part")
    show: Callable[[Estimate], str] = lambda e: f"{e.value:+.4f} ±{(e.high - e.low) / 2:.4f}"  # noqa: E731
    for name, by_round in values.items():
        apart = difference(by_round[-1], values["online DPO"][-1])
        twin = values.get(f"{name}, replay")
        exploration = difference(by_round[-1], twin[-1]) if twin else None
        numbers = "".join(f"{of_round.value:9.4f}" for of_round in by_round)
        own = "" if name == "online DPO" else show(apart)
        print(f"{name:38s}{numbers}   {own:20s}   {show(exploration) if exploration else ''}")
        rows_of[name] = {
            "rounds": [of_round.value for of_round in by_round],
            "minus_online": apart.to_json(),
            "exploration": exploration.to_json() if exploration else None,
        }
    return rows_of


if __name__ == "__main__":
    main()
