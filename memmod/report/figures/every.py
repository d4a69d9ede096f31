"""All charts of a run that need no choice, in the order of the page."""

from __future__ import annotations

from memmod.report.data import Run
from memmod.report.figures import accuracies, atlas, flows, judged, similarity
from memmod.report.figures.chart import Chart


def charts_of(run: Run) -> list[Chart]:
    """What the run's parts give; each name comes once."""
    found: list[Chart | None] = []
    if run.scorecard is not None:
        found.append(accuracies.accuracies(run.scorecard))
    elif run.by_class is not None:
        found.append(accuracies.class_accuracies(run.by_class))
    told = run.explanation
    if told is not None and told.flows is not None:
        found += flows.flows(told.flows, run.class_names)
    if told is not None and told.atlas is not None:
        found += [atlas.layers(told.atlas, run.class_names), atlas.closed_by(told.atlas)]
        found += similarity.similarity(told.atlas, run.class_names)
    if told is not None and told.faithfulness is not None:
        found.append(judged.faithfulness(told.faithfulness))
    found += [judged.outside(audit, number) for number, audit in enumerate(run.audits, 1)]
    return [chart for chart in found if chart is not None]
