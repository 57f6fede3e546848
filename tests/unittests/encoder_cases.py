"""What the tests of encoders/ and features/ share: encoders, and damage."""

import json

import torch

STRIDES = {
    "conv_dim": (16,) * 5,
    "conv_kernel": (10, 5, 4, 3, 3),
    "conv_stride": (5, 4, 4, 3, 2),
}
ROTARY = {"position_embeddings_type": "rotary"}
# Each kind of checkpoint, as the fixture make_checkpoint takes it
KINDS = {
    "hubert": {"family": "hubert"},
    "hubert-stable": {"family": "hubert", "stable": True},
    "hubert-ctc": {"family": "hubert", "stable": True, "head": "ForCTC"},
    "hubert-strides": {"family": "hubert", "config": STRIDES},
    "wav2vec2": {"family": "wav2vec2", "do_normalize": False},
    "wav2vec2-stable": {"family": "wav2vec2", "stable": True},
    "wav2vec2-pretrained": {"family": "wav2vec2", "head": "ForPreTraining"},
    "wavlm": {"family": "wavlm", "do_normalize": False},
    "wavlm-stable": {"family": "wavlm", "stable": True},
    "data2vec": {"family": "data2vec"},
    "w2v-bert": {"family": "w2v-bert"},
    "w2v-bert-rotary": {"family": "w2v-bert", "config": ROTARY},
    "whisper": {"family": "whisper"},
    "whisper-2s": {"family": "whisper", "seconds": 2},
}
NUM_LAYERS = 3
WEIGHT_FREE = ["fbank", "mfcc", "spectrogram"]
ALL_KINDS = [*WEIGHT_FREE, *KINDS]
FAMILIES = ["hubert", "wav2vec2", "wavlm", "data2vec", "w2v-bert", "whisper"]


class Blocks(torch.nn.Module):
    """An encoder of one's own: frames of 320 samples, weighted."""

    def __init__(self, gain=1.0, scale=1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((320,), gain))
        self.scale = scale

    def forward(self, wavs, lens):
        return self.scale * wavs.unfold(1, 320, 320) * self.weight


def encode(encoder, *signals):
    """Encodes a batch; the frames of each utterance, padded."""
    longest = max(map(len, signals))
    wavs = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True)
    lens = torch.tensor([len(signal) / longest for signal in signals])
    return encoder(wavs, lens)


def edit_json(path, **changes):
    """Changes entries of a JSON file, which need not exist."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def list_files(folder):
    """Lists the files of a folder, and of those in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_a_byte(path):
    """Damages a file without a change of its size."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(content)
