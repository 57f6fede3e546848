"""What all tests share: tiny checkpoints, a demo corpus, the fault table."""

import pytest
import torch
from fault_table import hide_places, write_fault_table
from make_corpus import make_demo_corpus
from recipe_runs import TINY

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
    return {
        "d_model": 16,
        "encoder_layers": num_layers,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_layerdrop": 0.5,
        "dropout": 0.5,
        "attention_dropout": 0.5,
        "activation_dropout": 0.5,
        "vocab_size": 8,
        "pad_token_id": 1,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "decoder_start_token_id": 1,
        "max_source_positions": 50 * seconds,
        "max_target_positions": 8,
    }


def make_settings(family, num_layers, stable):
    """The config of a tiny model of any other family."""
    settings = {
        "hidden_size": 16,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "layerdrop": 0.5,
        "hidden_dropout": 0.5,
        "attention_dropout": 0.5,
        "activation_dropout": 0.5,
        "feat_proj_dropout": 0.5,
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


# The table of faults ---------------------------------------------------------

FAULTS = pytest.StashKey[list]()


def pytest_addoption(parser):
    """Adds the options of the tests in tests/faults."""
    group = parser.getgroup("faults")
    group.addoption(
        "--fault-table",
        metavar="FILE",
        help="write the faults that the tests have made as a Markdown table",
    )
    group.addoption(
        "--kills",
        type=int,
        default=8,
        metavar="N",
        help="kill runs at so many random moments (default: 8)",
    )


def pytest_configure(config):
    """Starts an empty table of faults."""
    config.stash[FAULTS] = []


def pytest_sessionfinish(session):
    """Writes the table of faults, if it is asked for."""
    path = session.config.getoption("--fault-table")
    rows = session.config.stash[FAULTS]
    if path and rows:
        write_fault_table(rows, path)


@pytest.fixture
def record_fault(request, tmp_path_factory):
    """Takes a row of the table of faults, at the end of a test.

    Temporary folders are shown as "...", so that the table is the same every
    time.
    """

    def record(kind, fault, happened, kept):
        base = tmp_path_factory.getbasetemp()
        texts = (hide_places(str(text), base) for text in (happened, kept))
        request.config.stash[FAULTS].append((kind, fault, *texts))

    return record
