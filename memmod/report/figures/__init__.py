"""The charts of the page, as Vega-Lite specifications: on the page, and as files for a paper."""

from memmod.report.figures.chart import MANY, Chart
from memmod.report.figures.every import charts_of

__all__ = ["MANY", "Chart", "charts_of"]
