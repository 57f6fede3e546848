"""Corpus tables for tests."""

import pandas as pd

# Of an own one
HEADER = "id,wav,speaker,session,emo\n"


def make_table(emo, **columns):
    """A corpus table with the given labels."""
    table = pd.DataFrame({"emo": list(emo)})
    table["id"] = [f"u{i}" for i in range(len(table))]
    return table.assign(**columns)
