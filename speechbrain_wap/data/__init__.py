"""Corpora: audio, tables, folds, who is who, and what an epoch has."""
