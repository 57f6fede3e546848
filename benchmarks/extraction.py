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
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from speechbrain.dataio.batch import PaddedData
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper
from speechbrain.utils.data_pipeline import provides, takes
from timing import alternate, divide, measure_seconds, show_ratio, sum_up
from train_adapter import AdapterBrain
from workloads import Training, encode_emodb, fill_cache, list_wired

from speechbrain_wap.data.audio import inspect_audio, read_audio
from speechbrain_wap.encoders import SpeechEncoder
from speechbrain_wap.features import FeatureCache
from speechbrain_wap.reports.report import markdown_table

WHISPER_LAYER = 3
HUBERT_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
# The smallest that is built likewise, for a quick look
QUICK_HUBERT = {
    **HUBERT_LARGE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16,) * 7,
}


def make_hubert(folder, **config):
    """Saves a random HuBERT; without a config, of the base model's size."""
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig(**config))
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
            fill_cache(cache, entries.values())
            mine.update({d: cache.read(d).clone() for d in entries})

    runs = [partial(measure_seconds, run) for run in (run_wrapper, run_cache)]
    ratio = sum_up(divide(*alternate(*runs, repeats)))
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


def compare_epochs(options, repeats, folder):
    """Times an epoch of adapter training with and without the cache.

    On EmoDB, with a Whisper checkpoint and its layer, which options name.

    Returns
    -------
    ratios : list of float
        Seconds with SpeechBrain's wrapper in the loop / from the cache, of
        each repetition.
    cached : workloads.Training
        The latter.
    """
    corpus = encode_emodb(options, folder)
    cached, in_loop = Training(corpus), Training(corpus)
    wrapper = load_whisper(cached.hparams["encoder_source"])
    layer = cached.hparams["encoder_layer"]

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

    in_loop.brain = lambda run: InLoopBrain(run, **list_wired(run))
    in_loop.dataset = DynamicItemDataset(
        cached.corpus["entries"], [read_signal], ["id", "sig"]
    )
    ratios = divide(*alternate(in_loop.run_epoch, cached.run_epoch, repeats))
    return ratios, cached


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
        entry = {"wav": str(wav), "duration": duration, "digest": digest}
        entries[digest] = entry
    with tempfile.TemporaryDirectory() as folder:
        hubert = make_hubert(Path(folder, "hubert"))
        table = extraction_table(options, entries, hubert)
        chosen = [
            f"--data_folder={options.data_folder}",
            f"--encoder_source={options.whisper}",
            f"--encoder_layer={WHISPER_LAYER}",
        ]
        ratios, cached = compare_epochs(
            chosen, options.epoch_repeats, Path(folder)
        )
        files = cached.hparams["feature_cache"].folder.glob("*/*.safetensors")
        size = sum(file.stat().st_size for file in files) / 1e6
    print(f"\n{len(entries)} utterances, {torch.get_num_threads()} threads\n")
    print(table)
    train = cached.corpus["entries"].values()
    hours = sum(entry["duration"] for entry in train) / 3600
    print(
        f"\nepoch of adapter training, {len(train)} utterances: "
        f"{show_ratio(sum_up(ratios))} times as long with the wrapper in the "
        f"loop as from the cache\ncache, once: {cached.corpus['seconds']:.0f} "
        f"s, {size:.1f} MB for {hours:.2f} h, {size / hours:.1f} MB per hour"
    )


if __name__ == "__main__":
    main()
