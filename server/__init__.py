"""Whoever starts a run: rounds, aggregation, evaluation, report."""
