"""Answers "is B better than A": query files, rankings, measures, result files, paired comparison.

Write `from eval.metrics import score_run`, never a bare import of this package: it would hide the builtin of that name.
"""
