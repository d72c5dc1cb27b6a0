"""Several fine-tunes of one base in, one model out: methods as pure functions on tensors, carried out on disk."""

from consilience.merge.execute import MergeSettings, merge_checkpoints
from consilience.merge.methods import MERGES

__all__ = ["MERGES", "MergeSettings", "merge_checkpoints"]
