"""The evaluation logs that people have, read into one table of scores: no torch, nothing dropped without a count.

`KINDS` is the whole list of formats: each recognises its files by their content and reads them.
"""

from consilience.evaluate.logs.matching import Matched, match, names_of
from consilience.evaluate.logs.read import KINDS, read_log
from consilience.evaluate.logs.scores import Log, Metric, Score, Status, printable
from consilience.evaluate.logs.tables import scores_row

__all__ = [
    "KINDS",
    "Log",
    "Matched",
    "Metric",
    "Score",
    "Status",
    "match",
    "names_of",
    "printable",
    "read_log",
    "scores_row",
]
