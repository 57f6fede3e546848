"""A small corpus and a feature cache that the tests share."""

import pytest
from recipe_runs import TINY

from speechbrain_wap.demo_corpus import make_demo_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A demo corpus in IEMOCAP's layout, under a name with a space."""
    folder = tmp_path_factory.mktemp("data") / "IEMOCAP räkning"
    make_demo_corpus(folder, seed=1, utterances_per_speaker=16)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A feature cache that the tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(corpus, cache):
    """Options of a tiny run on the demo corpus."""
    return [*TINY, f"--data_folder={corpus}", f"--cache_folder={cache}"]
