"""What extraction and the feature cache cost, against SpeechBrain's own way.

Every figure is a ratio of two things that are timed in this one run, one
after the other, several times:

- extraction into the feature cache against SpeechBrain's wrapper, called
  utterance by utterance with all threads, on the same files;
- an epoch of adapter training from the cache against one with SpeechBrain's
  wrapper in the loop.

> python benchmarks/extraction.py --data_folder=/path/to/EmoDB \
      --whisper=/path/to/whisper-tiny.en
"""

import argparse
import logging
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from speechbrain.dataio.batch import PaddedData
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.seed import seed_everything
from timing import (
    RECIPES,
    alternate,
    divide,
    measure_seconds,
    show_ratio,
    sum_up,
    time_ratio,
)
from train_adapter import AdapterBrain

from speechbrain_wap.data.audio import inspect_audio, read_audio
from speechbrain_wap.data.datasets import make_dataset
from speechbrain_wap.data.folds import FoldPlan, read_manifests
from speechbrain_wap.data.preparation import prepare_adapter_data
from speechbrain_wap.encoders.speech_encoder import SpeechEncoder
from speechbrain_wap.evaluation.report import markdown_table
from speechbrain_wap.features.cache import FeatureCache
from speechbrain_wap.files import format_bytes
from speechbrain_wap.training.settings import load_recipe, parse_arguments

RECIPE = RECIPES / "EmoDB/wap_adapter"
WHISPER_LAYER = 3


def make_hubert(folder):
    """Saves a random HuBERT of the base model's size."""
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig())
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


def load_whisper(source):
    """Loads SpeechBrain's Whisper; in float32, which it would not by itself."""
    wrapper = Whisper(
        source, source, encoder_only=True, freeze=True, output_all_hiddens=True
    )
    return wrapper.float().eval()


def load_hubert(source):
    """Loads SpeechBrain's wav2vec 2.0 wrapper."""
    return Wav2Vec2(source, source, freeze=True, output_all_hiddens=True).eval()


def compare_extraction(source, layer, context, wrapper, entries, repeats):
    """Times one encoder both ways; the ratio and how far features differ."""
    encoder = SpeechEncoder(source, layer, context)
    encoder.load("cpu")
    (index,) = encoder.layers
    theirs, mine = {}, {}

    def run_wrapper():
        for digest, entry in entries.items():
            signal = read_audio(entry["wav"], 16000)
            with torch.no_grad():
                theirs[digest] = wrapper(signal[None])[index, 0]

    def run_cache():
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache(folder, encoder, "float32")
            failures = cache.extract(entries)
            if failures:
                raise RuntimeError(f"not encoded: {failures}")
            mine.update({d: cache.read(d).clone() for d in entries})

    ratio = time_ratio(run_wrapper, run_cache, repeats)
    errors = []
    for digest, feats in mine.items():
        expected = theirs[digest][: len(feats)]
        errors.append(float((feats - expected).norm() / expected.norm()))
    return ratio, max(errors)


def extraction_table(options, entries, hubert):
    """Compares all encoders; a Markdown table."""
    cases = [
        ("whisper, full", options.whisper, "last", "full", load_whisper),
        ("whisper, full", options.whisper, WHISPER_LAYER, "full", load_whisper),
        ("whisper, clip", options.whisper, WHISPER_LAYER, "clip", load_whisper),
        ("HuBERT-base size", hubert, "last", "full", load_hubert),
        ("HuBERT-base size", hubert, 9, "full", load_hubert),
        ("HuBERT-base size", hubert, 6, "full", load_hubert),
    ]
    rows = []
    for name, source, layer, context, load in cases:
        ratio, error = compare_extraction(
            source, layer, context, load(source), entries, options.repeats
        )
        rows.append([name, layer, show_ratio(ratio), f"{error:.1e}"])
        print(*rows[-1], flush=True)
    header = ["encoder", "layer", "times as fast", "largest difference"]
    return markdown_table(header, rows)


def compare_epochs(data_folder, source, layer, repeats, folder):
    """Times an epoch of adapter training with and without the cache.

    Arguments
    ---------
    data_folder : str
        EmoDB.
    source : str
        A Whisper checkpoint.
    layer : int
        Its layer.
    repeats : int
        How often both are timed, in turn.
    folder : str
        For temporary files.

    Returns
    -------
    ratios : list of float
        Seconds with SpeechBrain's wrapper in the loop / from the cache, of
        each repetition.
    once : float
        Seconds that filling the cache took.
    size : int
        Bytes of the cache.
    hours : float
        Of audio.
    num_utterances : int
    """
    hparams_file, run_opts, overrides = parse_arguments(
        [
            str(RECIPE / "hparams/adapter.yaml"),
            "--device=cpu",
            f"--data_folder={data_folder}",
            f"--encoder_source={source}",
            f"--encoder_layer={layer}",
            f"--output_folder={folder}/run",
            f"--cache_folder={folder}/cache",
            "--number_of_epochs=1",
        ]
    )
    hparams, _, _ = load_recipe(hparams_file, overrides, run_opts, "mask_ratio")
    manifests = hparams["manifests"]
    prepare_adapter_data(hparams["corpus"], FoldPlan(1), "train", manifests)
    train = read_manifests(manifests)["train"]
    cache = hparams["feature_cache"]
    entries = {entry["digest"]: entry for entry in train.values()}
    once = measure_seconds(lambda: cache.extract(entries))
    wrapper = load_whisper(source)

    class InLoopBrain(AdapterBrain):
        """Encodes each batch anew, as SpeechBrain's recipes do."""

        def compute_forward(self, batch, stage):
            wavs, lens = batch.sig
            num_frames = -(-wavs.shape[1] // 320)
            with torch.no_grad():
                feats = wrapper(wavs)[layer][:, :num_frames]
            batch.feats = PaddedData(feats, lens)
            return super().compute_forward(batch, stage)

    @takes("wav")
    @provides("sig")
    def read_signal(wav):
        return read_audio(wav, 16000)

    cached = make_dataset(train, cache, hparams["max_frames"], "error")
    raw = DynamicItemDataset(train, [read_signal], ["id", "sig"])

    def run_epoch(brain_class, dataset):
        # else the next one would go on from this one's checkpoint
        shutil.rmtree(hparams["save_folder"])
        Path(hparams["save_folder"]).mkdir()
        seed_everything(hparams["seed"])
        brain = brain_class(
            hparams["modules"],
            hparams["opt_class"],
            hparams,
            run_opts,
            hparams["checkpointer"],
        )
        brain.has_validation = False
        loader = brain.make_train_loader(
            dataset, hparams["seed"], **hparams["dataloader_options"]
        )
        brain.fit([1], loader, progressbar=False)

    runs = [
        lambda: measure_seconds(lambda: run_epoch(InLoopBrain, raw)),
        lambda: measure_seconds(lambda: run_epoch(AdapterBrain, cached)),
    ]
    ratios = divide(*alternate(*runs, repeats))
    size = sum(f.stat().st_size for f in cache.folder.glob("*/*.safetensors"))
    hours = sum(entry["duration"] for entry in train.values()) / 3600
    return ratios, once, size, hours, len(train)


def main():
    """Runs all comparisons and prints them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--whisper", required=True)
    parser.add_argument("--utterances", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epoch_repeats", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()

    wavs = sorted(Path(options.data_folder, "wav").glob("*.wav"))
    entries = {}
    for wav in wavs[:: max(1, len(wavs) // options.utterances)]:
        duration, digest, _ = inspect_audio(str(wav))
        entries[digest] = {"wav": str(wav), "duration": duration}
    with tempfile.TemporaryDirectory() as folder:
        hubert = make_hubert(Path(folder, "hubert"))
        table = extraction_table(options, entries, hubert)
        ratios, once, size, hours, num_utterances = compare_epochs(
            options.data_folder,
            options.whisper,
            WHISPER_LAYER,
            options.epoch_repeats,
            folder,
        )
    print(f"\n{len(entries)} utterances, {torch.get_num_threads()} threads\n")
    print(table)
    print(
        f"\nepoch of adapter training, {num_utterances} utterances: "
        f"{show_ratio(sum_up(ratios))} times as long with the wrapper in the "
        f"loop as from the cache\ncache, once: {once:.0f} s, "
        f"{format_bytes(size)} for "
        f"{hours:.2f} h, {format_bytes(size / hours)} per hour"
    )


if __name__ == "__main__":
    main()
