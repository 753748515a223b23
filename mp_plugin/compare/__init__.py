"""Runs side by side: what a precision cost in accuracy, and what it saved."""

from mp_plugin.compare.comparison import Comparison, compare_runs, precisions_below
from mp_plugin.compare.page import build_comparison_page
from mp_plugin.compare.terminal import comparison_view

__all__ = ["Comparison", "build_comparison_page", "compare_runs", "comparison_view", "precisions_below"]
