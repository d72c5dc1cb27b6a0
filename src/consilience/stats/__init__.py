"""Numbers measured on a sample, with what is known of their error: numpy and scipy only; nothing is drawn at random but
from a generator that is handed in.

Every estimator gives an `Estimate`, a value and every independent unit's influence on it; so differences are paired,
and joint intervals and ranks are read, in one way for all of them.
"""

from consilience.stats.agreement import cohens_kappa, fleiss_kappa, gwet_ac, krippendorff_alpha, observed_agreement
from consilience.stats.bradley_terry import bradley_terry
from consilience.stats.correction import post_stratified, prediction_powered
from consilience.stats.estimate import Estimate, average, difference, shown_decimals
from consilience.stats.length_control import GamedBaselines, LengthControlled, length_controlled_win_rate
from consilience.stats.means import mean, over_sets, ratio
from consilience.stats.mt_bench import MtBenchScore, mt_bench_score
from consilience.stats.paired_latent import probability_better_latent
from consilience.stats.paired_shares import PairedCounts, paired_counts, paired_difference, probability_above_by
from consilience.stats.planning import (
    design_effect,
    effective_gold_items,
    half_width,
    items_for_difference,
    items_for_half_width,
    items_for_share,
    smallest_difference,
)
from consilience.stats.probabilities import (
    covariance,
    probability_above,
    probability_curve,
    probability_within,
    simultaneous,
)
from consilience.stats.proportions import proportion, share_difference, share_interval
from consilience.stats.ranks import RankProbabilities, rank_probabilities
from consilience.stats.repeats import VarianceComponents, pass_at_k, variance_components
from consilience.stats.resampling import bca, bootstrap_draws, jackknife, percentile
from consilience.stats.unitizing import unitizing_alpha
from consilience.stats.units import sums_by_unit, unit_index
from consilience.stats.win_rate import WinCounts, discrete_win_rate, win_counts, win_rate

__all__ = [
    "Estimate",
    "GamedBaselines",
    "LengthControlled",
    "MtBenchScore",
    "PairedCounts",
    "RankProbabilities",
    "VarianceComponents",
    "WinCounts",
    "average",
    "bca",
    "bootstrap_draws",
    "bradley_terry",
    "cohens_kappa",
    "covariance",
    "design_effect",
    "difference",
    "discrete_win_rate",
    "effective_gold_items",
    "fleiss_kappa",
    "gwet_ac",
    "half_width",
    "items_for_difference",
    "items_for_half_width",
    "items_for_share",
    "jackknife",
    "krippendorff_alpha",
    "length_controlled_win_rate",
    "mean",
    "mt_bench_score",
    "observed_agreement",
    "over_sets",
    "paired_counts",
    "paired_difference",
    "pass_at_k",
    "percentile",
    "post_stratified",
    "prediction_powered",
    "probability_above",
    "probability_above_by",
    "probability_better_latent",
    "probability_curve",
    "probability_within",
    "proportion",
    "rank_probabilities",
    "ratio",
    "share_difference",
    "share_interval",
    "shown_decimals",
    "simultaneous",
    "smallest_difference",
    "sums_by_unit",
    "unit_index",
    "unitizing_alpha",
    "variance_components",
    "win_counts",
    "win_rate",
]
