"""The model card of an exported model: what it is, and what it is not for."""

from pathlib import Path

import yaml

import speechbrain_wap
from speechbrain_wap.encoders.registry import WEIGHT_FREE
from speechbrain_wap.encoders.speech_encoder import SpeechEncoder
from speechbrain_wap.files import write_text
from speechbrain_wap.reports.report import (
    SCORES,
    escape_markdown,
    markdown_table,
    percent,
)

PROTOCOLS = {
    "paper": "the held-out session was also looked at while training "
    "(protocol: paper)",
    "held_out": "another session chose the epoch (protocol: held_out)",
}
CARD = """---
{header}---

# Speech emotion recognition: {classes}

{what}

```python
from speechbrain_wap.inference import EmotionRecognizer

recognizer = EmotionRecognizer.from_hparams("path/to/this/folder")
probabilities, score, index, label = recognizer.classify_file("speech.wav")
segments = recognizer.diarize_file("an_hour.wav")
```

With SpeechBrain alone: `foreign_class(source,
pymodule_file="custom_interface.py", classname="CustomInterface")`. On the
command line: `python -m speechbrain_wap recognize path/to/this/folder
speech.wav`. Both need the package `speechbrain_wap`.{note}

## Training

{training}

## Scores

{scores}

{caveat}

## What it must not be used for

It tells how speech sounds to the people who labelled its training data, a few
acted or recorded emotions of a few speakers of one language; it does not tell
what somebody feels. It has not been tested on other speakers, languages, ages,
rooms or microphones than those of its corpus. Do not use it to judge, select,
watch or profile people, at work, in schools, in health care, in public places
or before the law, nor for any decision about a person; in some places, as under
the European Union's AI Act, such uses are forbidden. The licences of corpus and
encoder hold for this model, too.
"""

# SpeechBrain fetches the files that it knows of
BUNDLED = """ From the hub, take the first way:
the encoder is in a folder that `foreign_class` does not fetch."""


def find_licence(encoder):
    """Reads the licence off a checkpoint's own model card, None without one."""
    folder = getattr(getattr(encoder, "front_end", None), "folder", None)
    card = Path(folder, "README.md") if folder else None
    if card is None or not card.is_file():
        return None
    _, _, rest = card.read_text("utf-8", errors="replace").partition("---\n")
    try:
        header = yaml.safe_load(rest.partition("\n---")[0])
        return header.get("license")
    except (AttributeError, yaml.YAMLError):
        return None


def name_corpus(run):
    """Names the corpus that a run was trained on: its folder or its table."""
    tree = run.tree
    if tree.get("corpus_csv"):
        return Path(tree["corpus_csv"]).stem
    return Path(tree.get("data_folder") or "unknown").name


def write_model_card(runs, output, is_bundled):
    """Writes a model folder's README.md.

    Arguments
    ---------
    runs : list of speechbrain_wap.evaluation.trained_run.TrainedRun
        Whose models are in it.
    output : pathlib.Path
        The folder.
    is_bundled : bool
        Whether the encoder is in it.
    """
    first, settings = runs[0], runs[0].settings
    corpus, classes = name_corpus(first), first.scores["classes"]
    encoders = []
    for cache in first.caches.values():
        encoder = cache.encoder
        name = getattr(encoder, "name", type(encoder).__name__)
        licence = find_licence(encoder) or "see its own page"
        layers = ""
        if isinstance(encoder, SpeechEncoder):
            layers = f", layers {encoder.layers} of {encoder.source}"
        encoders.append(f"{name}{layers} (licence: {licence})")
    epochs = first.scores["number_of_epochs"]
    adapter = "from an adapter" if settings.get("adapter_identity") else "anew"
    facts = {
        "corpus": corpus,
        "classes": ", ".join(classes),
        "encoder, frozen": "; ".join(encoders)
        + ("; in this folder" if is_bundled else "; not in this folder"),
        "system": f"{settings.get('system')}, started {adapter}",
        "epochs": f"{epochs}; the {settings.get('model_selection')} one",
        "features, evaluation": ", ".join(
            [
                *(cache.precision for cache in first.caches.values()),
                str(settings.get("eval_precision") or "fp32"),
            ]
        ),
    }
    rows = [
        [run.scores["fold"], run.scores["session"], run.scores["n"]]
        + [percent(run.scores[score]) for score in SCORES]
        for run in runs
    ]
    header = ["fold", "held-out session", "n", *SCORES]
    protocol = PROTOCOLS.get(settings.get("protocol"), "")
    if len(runs) == 1:
        what = f"One fold of {corpus}: session {rows[0][1]} did not train it."
        caveat = (
            f"Of one fold, in percent; {protocol or 'see the report'}. Speech "
            "from elsewhere will be recognised worse."
        )
    else:
        what = (
            f"The average of {len(runs)} models, one for each fold of "
            f"{corpus}: together, they were trained on all of its speakers."
        )
        caveat = (
            "Of the single models, in percent, each on what it was not trained "
            f"on; {protocol or 'see the report'}. Of their average there is no "
            "score: no speech of the corpus is left to test it on."
        )
    result = {
        "task": {"type": "audio-classification"},
        "dataset": {"name": corpus, "type": corpus.lower()},
        "metrics": [
            {
                "type": name,
                "name": f"{score}, {len(runs)} held-out fold(s)",
                "value": round(
                    sum(run.scores[score] for run in runs) / len(runs), 4
                ),
            }
            for score, name in (
                ("UA", "recall"),
                ("WA", "accuracy"),
                ("F1", "f1"),
            )
        ],
    }
    name = f"{settings.get('system')}-{corpus}"
    top = {
        "library_name": "speechbrain",
        "pipeline_tag": "audio-classification",
        "tags": ["speechbrain", "speech-emotion-recognition"],
        "datasets": [corpus],
        "model-index": [{"name": name, "results": [result]}],
    }
    cache = first.caches.get("")
    source = getattr(getattr(cache, "encoder", None), "source", None)
    is_hub_id = source and source not in WEIGHT_FREE
    if is_hub_id and not Path(str(source)).is_dir():
        top["base_model"] = str(source)
    text = CARD.format(
        header=yaml.safe_dump(top, sort_keys=False, allow_unicode=True),
        note=BUNDLED if is_bundled else "",
        classes=escape_markdown(", ".join(classes)),
        what=f"{what} Exported by speechbrain_wap "
        f"{speechbrain_wap.__version__}.",
        training=markdown_table(["", ""], facts.items()),
        scores=markdown_table(header, rows),
        caveat=caveat,
    )
    write_text(output / "README.md", text)
