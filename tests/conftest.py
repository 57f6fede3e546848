"""What all tests share: tiny checkpoints, a demo corpus, the fault table."""

import re
from pathlib import Path

import pytest
import torch
from make_corpus import make_demo_corpus
from recipe_runs import REPOSITORY, TINY

from speechbrain_wap.errors import escape_controls

# The names that transformers gives the families of encoders
FAMILIES = {
    "data2vec": "Data2VecAudio",
    "hubert": "Hubert",
    "w2v-bert": "Wav2Vec2Bert",
    "wav2vec2": "Wav2Vec2",
    "wavlm": "WavLM",
    "whisper": "Whisper",
}


def make_whisper_settings(num_layers, seconds):
    """The config of a tiny Whisper whose windows last so many seconds."""
    dropouts = ("dropout", "attention_dropout", "activation_dropout")
    tokens = ("pad", "bos", "eos", "decoder_start")
    return {
        **dict.fromkeys((*dropouts, "encoder_layerdrop"), 0.5),
        **dict.fromkeys([f"{name}_token_id" for name in tokens], 1),
        "d_model": 16,
        "encoder_layers": num_layers,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "vocab_size": 8,
        "max_source_positions": 50 * seconds,
        "max_target_positions": 8,
    }


def make_settings(family, num_layers, stable):
    """The config of a tiny model of any other family."""
    dropouts = ("hidden", "attention", "activation", "feat_proj")
    settings = {
        **dict.fromkeys([f"{name}_dropout" for name in dropouts], 0.5),
        "layerdrop": 0.5,
        "hidden_size": 16,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 8,
    }
    if family == "w2v-bert":
        return {**settings, "conformer_conv_dropout": 0.5}
    settings |= {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 2}
    if family == "data2vec":
        return {**settings, "num_conv_pos_embeddings": 2}
    return {
        **settings,
        "conv_bias": stable,
        "num_conv_pos_embeddings": 16,
        "do_stable_layer_norm": stable,
        "feat_extract_norm": "layer" if stable else "group",
    }


@pytest.fixture(scope="session")
def make_checkpoint():
    """Saves a random Hugging Face checkpoint with layers of 16 dimensions.

    All dropouts of the families in FAMILIES are on, so that an encoder in
    train mode shows. The entries of config replace those of the tiny model;
    seconds is how long a window of Whisper lasts.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()

    def make(
        folder,
        family,
        stable=False,
        do_normalize=True,
        dtype=torch.float32,
        seed=0,
        head="Model",
        num_layers=2,
        seconds=30,
        config=None,
    ):
        torch.manual_seed(seed)
        if family == "whisper":
            settings = make_whisper_settings(num_layers, seconds)
            extractor = transformers.WhisperFeatureExtractor(
                feature_size=80, chunk_length=seconds
            )
        else:
            settings = make_settings(family, num_layers, stable)
            extractor = (
                transformers.SeamlessM4TFeatureExtractor()
                if family == "w2v-bert"
                else transformers.Wav2Vec2FeatureExtractor(
                    do_normalize=do_normalize, return_attention_mask=stable
                )
            )
        name = FAMILIES[family]
        config = getattr(transformers, f"{name}Config")(
            **{**settings, **(config or {})}
        )
        model = getattr(transformers, f"{name}{head}")(config)
        with torch.no_grad():  # far from the near-nothing of a fresh model
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.to(dtype).save_pretrained(folder)
        extractor.save_pretrained(folder)
        return str(folder)

    return make


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


@pytest.fixture(autouse=True, scope="session")
def no_list_of_packages():
    """SpeechBrain lists all packages at each start, half of a short run's time.

    What is started as a process of its own still does.
    """
    name = "speechbrain.utils.logger.get_environment_description"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, lambda: "")
        yield


# The long lists of faults ----------------------------------------------------

FAULTS = """# Faults

What the recipes do about bad input and kills: a row is a test that has passed.
"""


def pytest_addoption(parser):
    """Adds the options of `make faults`."""
    parser.addoption(
        "--long", action="store_true", help="run the tests marked as long, too"
    )
    parser.addoption(
        "--fault-table",
        metavar="FILE",
        help="write the faults that the tests have made as a Markdown table",
    )


def pytest_configure(config):
    """Declares the mark of a test that is one of many alike."""
    config.addinivalue_line("markers", "long: runs with --long only")


def pytest_collection_modifyitems(config, items):
    """Leaves the long tests out unless they are asked for."""
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


@pytest.fixture
def record_fault(record_property, tmp_path_factory):
    """Takes a row of the table of faults: kind, fault, what happened, kept.

    Temporary folders are shown as "...".
    """
    base = re.escape(str(tmp_path_factory.getbasetemp()))
    places = rf"{base}(/[\w-]+)?|{re.escape(str(REPOSITORY))}"

    def record(*row):
        cells = (re.sub(places, "...", " ".join(str(x).split())) for x in row)
        cells = (
            cell.replace("|", r"\|") for cell in map(escape_controls, cells)
        )
        record_property("fault", list(cells))

    return record


def pytest_terminal_summary(terminalreporter, config):
    """Writes the table of faults, also of tests in several processes."""
    path = config.getoption("--fault-table")
    if not path:
        return
    reports = terminalreporter.getreports("passed")
    rows = [
        row
        for report in sorted(reports, key=lambda report: report.nodeid)
        for name, row in report.user_properties
        if name == "fault" and report.when == "call"
    ]
    parts = [FAULTS]
    for kind in dict.fromkeys(row[0] for row in rows):
        cells = [row[1:] for row in rows if row[0] == kind]
        parts.append(f"## {kind.capitalize()} ({len(cells)})\n")
        parts.append("| fault | what happened | what was kept |\n|---|---|---|")
        parts += ["| " + " | ".join(row) + " |" for row in cells]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(parts) + "\n", "utf-8")
