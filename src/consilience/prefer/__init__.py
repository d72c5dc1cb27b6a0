"""Preference alignment: losses over pairs, pairing rules, and the rounds of sample, judge, pair, train."""

from consilience.prefer.losses import LOSSES, LossSettings, PairLogprobs, pair_loss

__all__ = ["LOSSES", "LossSettings", "PairLogprobs", "pair_loss"]
