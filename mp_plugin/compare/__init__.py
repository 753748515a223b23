"""Runs side by side: what a precision cost in accuracy, and what it saved."""

from mp_plugin.compare.comparison import compare_runs

__all__ = ["compare_runs"]
