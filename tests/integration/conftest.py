"""What the runs from end to end share: the demo corpus as tables."""

import pandas as pd
import pytest
from recipe_runs import call, load_script


@pytest.fixture(scope="session")
def corpus_csv(corpus, tmp_path_factory):
    """The corpus table of the demo corpus."""
    path = tmp_path_factory.mktemp("table") / "corpus.csv"
    load_script("iemocap_prepare.py").prepare_iemocap(corpus, path)
    return path


@pytest.fixture(scope="session")
def tables(corpus_csv, tmp_path_factory):
    """The demo corpus as two tables: sessions 1 to 3, and the other ones.

    The second has other classes, other names of the same people, and sessions
    that are counted from 1.
    """
    folder = tmp_path_factory.mktemp("tables")
    table = pd.read_csv(corpus_csv, dtype=str)
    is_first = table["session"].isin(["1", "2", "3"])
    table[is_first].to_csv(folder / "first.csv", index=False)
    rest = table[~is_first & table["emo"].isin(["ang", "sad"])]
    rest = rest[["id", "wav", "speaker", "session", "emo"]].assign(
        speaker=rest["speaker"].str[-2:],
        session=rest["session"].map({"4": "1", "5": "2"}),
        emo=rest["emo"].map({"ang": "hot", "sad": "cold"}),
    )
    rest.to_csv(folder / "second.csv", index=False)
    return folder / "first.csv", folder / "second.csv"


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter of fold 1."""
    folder = tmp_path_factory.mktemp("adapter")
    call(
        *("train_adapter.py", "adapter", *tiny, "--num_attributes=8"),
        *("--number_of_epochs=3", "--probe_every=2"),
        f"--output_folder={folder}",
    )
    return folder
