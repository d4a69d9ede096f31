"""The HTML report of a run, and its figures as files."""

from memmod.report.data import HeldOut, LayerNote, Memory, Report, Run, Table
from memmod.report.exports import write_figures
from memmod.report.page import render, write_report

__all__ = [
    "HeldOut",
    "LayerNote",
    "Memory",
    "Report",
    "Run",
    "Table",
    "render",
    "write_figures",
    "write_report",
]
