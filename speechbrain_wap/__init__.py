"""Adapter with local attributes for speech emotion recognition.

SpeechBrain modules for "An Efficient Transfer Learning Method Based on Adapter
with Local Attributes for Speech Emotion Recognition": one concept per file,
named by the paper's nouns.
"""

from speechbrain_wap.requirements import check_requirements

__version__ = "0.2.0"

check_requirements()
