"""A comparison in words: what it comes to, and what was compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tenfold.bench.compare.findings import Latency
from tenfold.bench.compare.results import Results
from tenfold.bench.report.summary import ReportEntry, by_budget, latencies, percent


def lead(found: Sequence[ReportEntry], results: Results) -> list[str]:
    """The main findings in a few sentences."""
    said = []
    if len(results.runs) < results.expected:
        said.append(f"Not finished: {len(results.runs)} of {results.expected} runs are there so far.")
    failed = sum(run.failure is not None for run in results.runs)
    if failed:
        said.append(f"{plural(failed, 'run')} failed, and {'counts' if failed == 1 else 'count'} nowhere.")
    dense = next((entry.accuracy for entry in found if entry.dense), None)
    if dense is not None:
        said.append(f"The dense network reaches {percent(dense)} on the test set.")
    return said + verdicts(found)


def facts(found: Sequence[ReportEntry], results: Results) -> list[tuple[str, str]]:
    """The facts of the comparison, as pairs of title and text: network, data, methods, budgets, seeds and epochs."""
    runs = results.runs
    known = [
        ("Network", _listed(run.model for run in runs)),
        ("Data", _listed(_data_words(run.data) for run in runs)),
        ("Methods", _listed(entry.label for entry in found if not entry.dense)),
        ("Budgets", _listed(entry.where for entry in found if not entry.dense)),
        ("Seeds", _listed(str(run.seed) for run in runs)),
        ("Epochs", _listed((_epoch_words(run.epochs) for run in runs), " or ")),
        (
            "Latency",
            _listed(map(_latency_words, latencies(results))),
        ),
    ]
    return [(term, text) for term, text in known if text]


def _latency_words(found: Latency) -> str:
    runtime = "" if found.runtime == "eager" else f", {found.runtime}"
    return f"{found.device}, batch of {found.batch}, {plural(found.threads, 'thread')}{runtime}"


def _listed(texts: Iterable[str], between: str = ", ") -> str:
    return between.join(dict.fromkeys(texts))


def _data_words(data: dict[str, Any]) -> str:
    count = data.get("train")
    return str(data.get("name")) + (f" ({count:,} training examples)" if isinstance(count, int) else "")


def _epoch_words(epochs: dict[str, int]) -> str:
    return " + ".join(f"{count} of {phase}" for phase, count in epochs.items() if count)


def verdicts(found: Sequence[ReportEntry]) -> list[str]:
    """A sentence per budget with at least two methods: which one is best, and whether the seeds bear that out."""
    sentences = []
    for where, group in by_budget(found).items():
        ranked = [(entry, value) for entry in group if (value := entry.accuracy) is not None]
        ranked.sort(key=lambda pair: -pair[1].value)
        if len(ranked) < 2 or not group[0].budget:  # those that choose for themselves are of different sizes
            continue
        (first, top), (second, next_) = ranked[:2]
        if top.value == next_.value:
            sentences.append(f"At {where}: {first.label} and {second.label} are level at {percent(top)}.")
            continue
        sentence = f"At {where}: {first.label} is ahead with {percent(top)}, then {second.label} with {percent(next_)}"
        if top.half is None or next_.half is None:
            sentence += "; with one seed there is no telling chance from merit."
        elif top.low <= next_.high:
            sentence += "; their intervals overlap, so these seeds do not separate them."
        else:
            sentence += "; their intervals are apart."
        sentences.append(sentence)
    return sentences


def plural(count: int, noun: str) -> str:
    """``"3 runs"``, ``"1 run"``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
