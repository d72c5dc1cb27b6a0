"""Several fine-tunes of one base in, one model out: methods as formulas, carried out on disk block by block."""

from consilience.merge.checkpoints import MergeSettings, merge_checkpoints
from consilience.merge.execute import execute
from consilience.merge.methods import MERGES, check_parameters

__all__ = ["MERGES", "MergeSettings", "check_parameters", "execute", "merge_checkpoints"]
