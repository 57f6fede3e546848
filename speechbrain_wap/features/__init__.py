"""The feature cache: the frozen encoder runs once per utterance."""

from speechbrain_wap.features.cache import FeatureCache

__all__ = ["FeatureCache"]
