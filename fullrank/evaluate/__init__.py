"""Metrics that merge, their intervals, and comparisons over seeds."""
