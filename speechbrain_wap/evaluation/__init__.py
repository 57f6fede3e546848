"""Scores, probes, diagnostics, reports and comparisons."""
