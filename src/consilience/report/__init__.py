"""Reports: one HTML file per run that needs no network, from a plain dict of records."""

from consilience.report.alignment import write_alignment_report
from consilience.report.figures import ForestRow, curves, forest_plot
from consilience.report.fusion import write_fusion_report

__all__ = ["ForestRow", "curves", "forest_plot", "write_alignment_report", "write_fusion_report"]
