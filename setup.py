"""Installs speechbrain-wap."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"',
    (HERE / "speechbrain_wap" / "__init__.py").read_text(encoding="utf-8"),
)[1]

setup(
    name="speechbrain-wap",
    version=VERSION,
    description=(
        "Adapter with local attributes for speech emotion recognition, "
        "a SpeechBrain plugin and recipe"
    ),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["speechbrain_wap", "speechbrain_wap.*"]),
    package_data={
        "speechbrain_wap.comparisons": ["table1.yaml"],
        "speechbrain_wap.reports": ["page.html", "page.js"],
    },
    python_requires=">=3.10",
    install_requires=[
        # As far as was run: 2.7.1 with 2.7.1 to 2.14 with 2.11. Not every
        # pair in between goes together: requirements.py says what does.
        "torch>=2.7.1,<2.15",
        "torchaudio>=2.7.1,<2.12",
        "speechbrain>=1.1,<1.2",
        "transformers>=5.4,<6",  # 5.0 to 5.3 cannot load our encoders
        "huggingface_hub",
        "hyperpyyaml>=1.2.2",
        "joblib>=1.4",
        "numpy",
        "packaging",
        "ruamel.yaml",
        "scipy",
        "soundfile",
        "soxr>=0.3.7",
        "tqdm",
        # the first whose locks a forked process does not inherit
        "filelock>=3.30",
        "sentencepiece>=0.1.99",
        "pandas>=2.0",
        "safetensors>=0.4.3",
        "scikit-learn>=1.4",
        "threadpoolctl>=3.0",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    extras_require={
        "demo": ["gradio>=6"],
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.7",
            "setuptools>=70.1",
            "selenium>=4.11",
            "tensorboard>=2.16",
            # as SpeechBrain's pre-commit has them
            "ruff==0.12.4",
            "yamllint==1.35.1",
            "codespell==2.3.0",
        ],
    },
)
