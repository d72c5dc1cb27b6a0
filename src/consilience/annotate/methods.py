"""The methods paragraph of an annotation, written from what is on disk: nothing in it is remembered or assumed."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from consilience.annotate.freeze import Frozen
from consilience.annotate.gold import Gold
from consilience.annotate.recipe import Project
from consilience.annotate.run import FOLDER

ANSWERS = {
    "labels": "the log-probability of every label as the whole reply was computed under the model's chat template, and "
    "the likeliest label taken",
    "letters": "every label had an option letter, and the log-probability of each letter as the whole reply was "
    "computed",
    "constrained": "decoding could only end in an answer of the codebook",
    "free": "the model's reply was generated and read strictly: a reply that is no answer of the codebook has no label",
}


def methods_paragraph(project: Project, frozen: Frozen, estimates: dict[str, Any], gold: Gold) -> list[str]:
    """Sentences on texts, codebook, models, prompts, decoding, gold design and estimates, in that order."""
    return [
        _corpus(project, estimates),
        *[_configuration(project, frozen, name) for name in frozen.names],
        _choice(project, frozen, gold),
        _gold(estimates, gold),
        _estimates(project, estimates),
        _software(project, frozen),
    ]


def _corpus(project: Project, estimates: dict[str, Any]) -> str:
    book = project.codebook
    labels = f" with the labels {', '.join(book.names)}" if book.names else ""
    clusters = (
        f" in {estimates['clusters']:,} clusters ({project.recipe.data.cluster})" if estimates["clusters"] else ""
    )
    return (
        f"All {estimates['rows']:,} {book.unit}s of {project.recipe.data.path}{clusters} were coded for the "
        f"{book.level} variable {book.variable}{labels}, under codebook {book.digest}, the "
        "same for coders and models."
    )


def _configuration(project: Project, frozen: Frozen, name: str) -> str:
    fixed = frozen.record["configurations"][name]["identity"]
    strategy, model = fixed["strategy"], fixed["model"]
    run = _run_record(project, name)
    if model["column"]:
        return f"Configuration {name} are labels made elsewhere, as they stand in column {model['column']}."
    engine = run.get("engine", {})
    served = model["endpoint"] or {}
    where = f"{model['path'] or served['model']} ({engine.get('engine', served.get('url', 'a model in this process'))}"
    where += f", {engine['architecture']}, {engine['dtype']}" if "architecture" in engine else ""
    where += f", files {fixed['model_fingerprint']}" if model["path"] else ""
    where += f", chat template {engine['chat_template']})" if "chat_template" in engine else ")"
    shown = f" with {strategy['shots']} examples ({strategy['choose']})" if strategy["shots"] else ""
    kind = strategy["kind"].replace("_", " ")
    parts = [f"Configuration {name} asked {where} by the {kind} strategy{shown}; {ANSWERS[strategy['answer']]}"]
    if strategy["answer"] in ("labels", "letters"):
        if strategy["orders"] > 1:
            parts.append(f"probabilities were averaged over {strategy['orders']} orders of the labels")
        if strategy["correction"] != "none":
            named = strategy["correction"].replace("_", " ")
            parts.append(f"scores were put right by the {named} correction fitted on the development texts")
    else:
        decoding = "greedily" if strategy["temperature"] == 0 else f"at temperature {strategy['temperature']:g}"
        votes = f", {strategy['samples']} samples and their vote" if strategy["samples"] > 1 else ""
        parts.append(f"decoding {decoding}{votes}, at most {strategy['max_new_tokens']} tokens, seed {fixed['seed']}")
    said = "; ".join(parts) + "."
    if run:
        statuses = Counter(run["statuses"])
        without = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()) if status != "ok")
        flagged = f"; {run['flagged']:,} texts give orders to the model and were flagged" if run["flagged"] else ""
        mass = f"; on average {run['mean_mass']:.3f} of its probability was on the labels" if run["mean_mass"] else ""
        said += (
            f" It ran from {run['started'][:10]} to {run['finished'][:10]}; texts without a label: {without or 'none'}"
        )
        again = sum(round_["texts"] for round_ in run.get("coded_again", []))
        errors = f"; {again:,} codings that had ended in an error were made again" if again else ""
        said += f"{flagged}{mass}{errors}."
    return said


def _choice(project: Project, frozen: Frozen, gold: Gold) -> str:
    tried, dev = frozen.record["tried"], len(frozen.record["dev_gold"])
    others = ", the others are shown beside it" if len(frozen.names) > 1 else ""
    fixed = f"was fixed on {frozen.record['frozen'][:10]} (hash {frozen.record['digest']})"
    if not tried:
        return f"The configuration {fixed}, without a comparison on development texts{others}."
    return (
        f"Of {len(tried)} configurations compared on {dev} development texts, {frozen.primary} is reported{others}; "
        f"the choice {fixed}, before the estimates; the development texts are not among the test gold."
    )


def _gold(estimates: dict[str, Any], gold: Gold) -> str:
    probabilities = [item.probability for item in gold.test]
    strata = {item.stratum for item in gold.test} - {""}
    clusters = {item.cluster for item in gold.test} - {""}
    unequal = (
        None not in probabilities and max(p or 0 for p in probabilities) > min(p or 0 for p in probabilities) * 1.001
    )
    drawn = "with unequal known probabilities, which weight every figure" if unequal else "with equal probabilities"
    parts = [f"Gold are {estimates['gold']:,} hand-coded texts, drawn {drawn}"]
    if strata:
        parts.append(f"from {len(strata)} strata")
    if clusters:
        parts.append(f"in {len(clusters)} sampled clusters")
    coders = gold.coders
    double = sum(len(item.coders) > 1 for item in gold.test)
    if coders:
        parts.append(f"by {len(coders)} coder{'s' if len(coders) > 1 else ''}, {double} of them coded more than once")
    said = ", ".join(parts) + "."
    return " ".join([said, *estimates["without_label"]["sentences"]])


def _estimates(project: Project, estimates: dict[str, Any]) -> str:
    target = "the population that these texts are a sample of" if project.recipe.corpus_is_sample else "this corpus"
    said = (
        f"Shares are about {target}. They are estimated by Bayesian post-stratification: within each label that the "
        "model gave (and each reason for none), the shares of the gold labels have a Dirichlet prior of the weight of "
        "one text; value and intervals are the posterior's median and quantiles. Beside them stand PPI++, the gold "
        "texts alone (Wilson) and the model's labels as they are."
    )
    if estimates["formulas"]:
        said += (
            " Regressions are by design-based supervised learning (10 splits, 5 folds): the chances of the gold labels "
            "given the model's are learnt from other folds, and the gold texts, weighted by one over their probability "
            "of being drawn, put right what that gets wrong."
        )
    return said


def _software(project: Project, frozen: Frozen) -> str:
    versions = frozen.record["versions"]
    named = [
        f"{name} {versions[name]}" for name in ("consilience", "transformers", "torch", "numpy") if name in versions
    ]
    return f"Software: {', '.join(named)}; Python {versions['python']}; seed {project.recipe.seed}."


def _run_record(project: Project, name: str) -> dict[str, Any]:
    path = project.folder / FOLDER / f"{name}.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def run_records(project: Project, frozen: Frozen) -> dict[str, dict[str, Any]]:
    """What every frozen configuration's run left on record."""
    return {name: _run_record(project, name) for name in frozen.names}
