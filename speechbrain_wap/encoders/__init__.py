"""The frozen speech encoders: one file per kind, one way to call them."""

from speechbrain_wap.encoders.speech_encoder import (
    SpeechEncoder,
    count_encoder_layers,
    count_values_per_second,
    get_encoder_dim,
    get_frame_shape,
    get_identity,
)

__all__ = [
    "SpeechEncoder",
    "count_encoder_layers",
    "count_values_per_second",
    "get_encoder_dim",
    "get_frame_shape",
    "get_identity",
]
