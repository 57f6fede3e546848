"""Scores, the linear probe, tests of differences, what a run leaves."""
