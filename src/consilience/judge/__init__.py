"""Who prefers or scores: language models behind a server or in this process, reward models, rankers, functions.

    with open_judge(JudgeSettings(kind="pair", endpoint=...), cache=run / "answers.sqlite") as judge:
        judgments = judge.compares()(prompts, firsts, seconds)

Every judgment has a state; those without a verdict are counted by it, and never averaged away.
"""

from consilience.judge.functions import judge_of_function
from consilience.judge.judges import Judge, over_both_orders, prefer_by_scores, refuse_when_gone
from consilience.judge.language import alpaca_eval_swaps
from consilience.judge.table import JUDGES, JudgeSettings, language_judge, open_judge, prompt_named

__all__ = [
    "JUDGES",
    "Judge",
    "JudgeSettings",
    "alpaca_eval_swaps",
    "judge_of_function",
    "language_judge",
    "open_judge",
    "over_both_orders",
    "prefer_by_scores",
    "prompt_named",
    "refuse_when_gone",
]
