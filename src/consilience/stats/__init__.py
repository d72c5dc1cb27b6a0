"""Numbers measured on a sample, with what is known of their error: numpy and scipy only, nothing drawn at random."""

from consilience.stats.estimate import Estimate, average, difference, shown_decimals
from consilience.stats.means import mean, over_sets, proportion, ratio

__all__ = ["Estimate", "average", "difference", "mean", "over_sets", "proportion", "ratio", "shown_decimals"]
