"""What a recipe leaves out of a block, what `explore` says, and what an arm has from the recipe."""

from __future__ import annotations

from typing import Any

from consilience.config import parse
from consilience.pipelines.prefer_recipe import PreferRecipe
from consilience.prefer.arm import ArmSettings

RECIPE: dict[str, Any] = {
    "model": "m",
    "data": {"path": "d.jsonl"},
    "judge": {"kind": "function", "function": "reward.py:score"},
}


def recipe(**more: Any) -> PreferRecipe:
    return parse({**RECIPE, **more}, PreferRecipe, where="recipe")


def test_a_block_with_some_keys_keeps_selms_defaults_in_the_others() -> None:
    for given in ({}, {"train": {"learning_rate": 1e-6}, "sample": {"top_p": 0.9}}):
        settings = parse(given, ArmSettings, where="arm")
        assert (settings.train.epochs, settings.train.batch_size, settings.train.warmup) == (1, 128, 0.1)
        assert (settings.sample.max_new_tokens, settings.sample.temperature) == (1024, 0)
    assert settings.train.learning_rate == 1e-6


def test_measuring_shorter_replies_is_not_measuring_the_likeliest_ones() -> None:
    measured = recipe(measure={"sample": {"max_new_tokens": 9}}).measure.sample
    assert (measured.temperature, measured.max_new_tokens) == (1.0, 9)
    assert recipe(measure={"sample": {"temperature": 0}}).measure.sample.temperature == 0


def test_explore_says_where_replies_come_from_and_sample_says_otherwise() -> None:
    best = parse({"explore": "best_of_n"}, ArmSettings, where="arm").sample
    assert (best.temperature, best.samples, best.max_new_tokens) == (1.0, 4, 1024)
    cooler = parse({"explore": "best_of_n", "sample": {"temperature": 0.7}}, ArmSettings, where="arm").sample
    assert (cooler.temperature, cooler.samples) == (0.7, 4)


def test_an_arm_has_from_the_recipe_what_it_does_not_say() -> None:
    arms = recipe(
        explore="best_of_n",
        sample={"max_new_tokens": 9},
        train={"learning_rate": 1e-3},
        loss={"name": "selm", "alpha": 0.1},
        arms={
            "a": {},
            "b": {"explore": "none", "loss": {"alpha": 0.2}, "train": {"epochs": 2}},
            "c": {"data_from": "a"},
        },
    ).of_arms()
    assert arms["a"].sample.samples == 4
    assert (arms["b"].sample.samples, arms["b"].sample.temperature, arms["b"].sample.max_new_tokens) == (1, 0, 9)
    assert (arms["b"].loss.name, arms["b"].loss.alpha, arms["b"].loss.beta) == ("selm", 0.2, 0.1)
    assert (arms["b"].train.epochs, arms["b"].train.learning_rate) == (2, 1e-3)
    assert [*arms][-1] == "c"


def test_an_arm_and_its_twin_on_the_baselines_replies_are_told_apart_by_themselves() -> None:
    found = recipe(arms={"dpo": {}, "selm": {"loss": {"name": "selm", "alpha": 0.1}}}).decompositions()
    assert found == []
    selm = {"loss": {"name": "selm", "alpha": 0.1}}
    arms = {"dpo": {}, "selm": selm, "replay": {**selm, "data_from": "dpo"}, "other": {"loss": {"beta": 0.2}}}
    assert recipe(arms=arms).decompositions() == [("selm", "replay", "dpo")]


def test_rounds_have_their_own_learning_rates_and_may_begin_offline() -> None:
    settings = parse(
        {"loss": {"name": "selm", "alpha": 0.1}, "offline_rounds": 1, "learning_rates": [1e-6, 1e-7]},
        ArmSettings,
        where="arm",
    )
    first, second, third = (settings.in_round(number) for number in (1, 2, 3))
    assert (first.loss.name, first.pair, first.train.learning_rate) == ("dpo", "offline", 1e-6)
    assert (second.loss.name, second.pair, second.train.learning_rate) == ("selm", "best_worst", 1e-7)
    assert third.train.learning_rate == 1e-7
