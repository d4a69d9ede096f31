"""The HTML report of an unlearning run."""

from memmod.report.data import LayerNote, Memory, Method, Network, Report
from memmod.report.page import render, write_report

__all__ = ["LayerNote", "Memory", "Method", "Network", "Report", "render", "write_report"]
