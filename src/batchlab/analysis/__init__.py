"""Intervals, fits and verdicts, from numbers alone."""
