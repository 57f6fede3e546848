"""What `make upstream` lays into a SpeechBrain checkout."""

import ast
import doctest
import functools
import importlib
import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from recipe_runs import REPOSITORY, load_script
from speechbrain.lobes import models

from speechbrain_wap.evaluation.metrics import emotion_scores

# Where files are is their own affair
PLACES = ("output_folder", "data_folder")
SIZES = {"d_model": 4, "nhead": 2, "d_ffn": 4, "num_layers": 2}


@pytest.fixture(scope="module")
def tool():
    """The module of `make upstream`."""
    sys.path.insert(0, str(REPOSITORY / "upstream"))
    import lay_out

    return lay_out


def git(checkout, *command):
    """Runs git; gives what it prints."""
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@t.t")
    done = subprocess.run(
        [*git, *command], cwd=checkout, check=True, capture_output=True
    )
    return done.stdout.decode()


@pytest.fixture(scope="module")
def checkout(tool, tmp_path_factory):
    """What of a checkout the tool looks at, with everything laid out."""
    checkout = tmp_path_factory.mktemp("speechbrain")
    rows = checkout / "tests" / "recipes" / "IEMOCAP.csv"
    for path in (checkout / "speechbrain" / "version.txt", rows):
        path.parent.mkdir(parents=True)
    (checkout / "speechbrain" / "version.txt").write_text("1.1.0\n")
    own = (REPOSITORY / "upstream" / "rows" / "IEMOCAP.csv").read_text()
    head = own.splitlines()[0]
    rows.write_text(f'{head}\nE,IEMOCAP,a.py,a.yaml,,,,,"--a=1,2",,\n')
    git(checkout, "init", "-q")
    git(checkout, "add", "--all")
    git(checkout, "commit", "-qm", "bare")
    tool.lay_out(checkout)
    return checkout


def test_the_examples_hold(tool):
    result = doctest.testmod(tool)
    assert result.attempted > result.failed == 0


def test_a_second_run_changes_nothing(tool, checkout, capsys):
    assert git(checkout, "status", "--porcelain")
    git(checkout, "add", "--all")
    paths = tool.lay_out(checkout)
    said = capsys.readouterr().out.split()
    assert said[::2] == ["unchanged"] * len(paths) and said[1::2] == paths
    # nothing but what is staged: the links are links, no row is there twice
    assert "?" not in git(checkout, "status", "--porcelain")
    assert git(checkout, "diff") == ""
    rows = (checkout / "tests" / "recipes" / "IEMOCAP.csv").read_text()
    assert len(rows.splitlines()) == 4 and "a.yaml" in rows.splitlines()[1]


def test_a_dirty_checkout_is_refused(tool, checkout):
    mine = checkout / "speechbrain" / "mine.py"
    mine.write_text("")
    with pytest.raises(SystemExit, match=r"other files \(speechbrain/mine.py"):
        tool.lay_out(checkout)
    mine.unlink()
    with pytest.raises(SystemExit, match="no checkout"):
        tool.lay_out(checkout / "recipes")


def test_a_diff_that_a_maintainer_would_review(checkout):
    git(checkout, "add", "--all")
    numbers = git(checkout, "diff", "--cached", "--shortstat").split()
    assert numbers[4] == "insertions(+)" and int(numbers[3]) < 6000
    for path in checkout.rglob("*.py"):
        assert "speechbrain_wap" not in path.read_text("utf-8")


def test_what_is_imported_there_is_there(checkout):
    """What is written for there goes with what is taken from here."""
    found = 0
    for path in checkout.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            home = getattr(node, "module", None) or ""
            if home.startswith("speechbrain.lobes.models.wap_adapter."):
                text = (checkout / f"{home.replace('.', '/')}.py").read_text()
                for alias in node.names:
                    pattern = rf"^(def |class )?{alias.name}\b"
                    assert re.search(pattern, text, re.MULTILINE), path
                    found += 1
    assert found > 20


def test_weights_from_here_give_the_same_there(checkout, monkeypatch):
    folder = str(checkout / "speechbrain" / "lobes" / "models")
    monkeypatch.setattr(models, "__path__", [*models.__path__, folder])
    torch.manual_seed(1)
    results = []
    for home, classes in (
        ("speechbrain_wap", {}),
        ("speechbrain.lobes.models.wap_adapter", {"num_classes": 4}),
    ):
        parts = [
            functools.partial(
                getattr(importlib.import_module(f"{home}.{module}"), name),
                **sizes,
            )
            for module, name, sizes in (
                ("emotion_model", "EmotionModel", classes),
                ("wap_transformer", "WAPTransformer", SIZES),
                ("pooling", "StatisticalAttentivePooling", {"num_heads": 2}),
            )
        ]
        model = parts[0](*parts[1:], input_size=3).eval()
        if not classes:
            model.set_classes(4)
            weights = model.state_dict()
            for weight in weights.values():
                weight.normal_()
        model.load_state_dict(weights)
        torch.manual_seed(0)
        feats, mask = torch.randn(3, 9, 3), torch.rand(3, 9) < 0.4
        lens = torch.tensor([5, 9, 1]) / 9
        results.append(model(feats, lens, mask))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("corpus", ["IEMOCAP", "EmoDB"])
@pytest.mark.parametrize("stage", ["adapter", "classifier"])
def test_a_yaml_there_has_the_values_of_the_yaml_here(checkout, corpus, stage):
    """All that both have, whatever takes it from where."""
    path = f"recipes/{corpus}/wap_adapter/hparams/{stage}.yaml"
    there, here = (
        dict(_read_values(folder / path)) for folder in (checkout, REPOSITORY)
    )
    assert len(there.keys() & here.keys()) > 20
    for key in (there.keys() & here.keys()) - {"encoder_layer", *PLACES}:
        assert there[key] == here[key], key


def _read_values(path):
    """Reads a YAML's plain keys, with those of a system and of its include."""
    text = path.read_text("utf-8")
    if "system: !include" in text:
        folder = REPOSITORY / "recipes" / "IEMOCAP" / "wap_adapter" / "hparams"
        yield from _read_values(folder / "models" / "wap_sap.yaml")
        below = text.partition("system: !include")[2].partition("\n\n")[0]
        text += "".join(line[4:] + "\n" for line in below.splitlines()[1:])
    for line in text.splitlines():
        key, colon, value = line.partition("  #")[0].partition(": ")
        if colon and key.isidentifier() and "speechbrain" not in value:
            if value.strip() != f"!ref <{key}>":
                yield key, value.strip()


def test_folds_and_scores_there_are_those_here(checkout, corpus, tmp_path):
    data = load_module(checkout, "IEMOCAP/wap_adapter/wap_data.py")
    prepare = load_module(checkout, "IEMOCAP/iemocap_folds_prepare.py")
    rows = prepare.read_iemocap(corpus)
    table = load_script("iemocap_prepare.py").prepare_iemocap(
        corpus, tmp_path / "corpus.csv"
    )
    columns = ["id", "wav", "speaker", "session", "emo", "style"]
    assert [[row[c] for c in columns] for row in rows] == (
        table[columns].to_numpy().tolist()
    )
    files = [tmp_path / f"{name}.json" for name in ("train", "valid", "test")]
    data.write_manifests(rows, 2, *files)
    train, valid, test = (data.read_manifest(file, "") for file in files)
    assert valid == test and len(train) + len(test) == len(rows)
    assert {entry["session"] for entry in test.values()} == {"2"}
    assert {entry["session"] for entry in train.values()} == {*"1345"}
    classes = {"angry": ["ang"], "happy": ["hap", "exc"]}
    labelled = data.label_utterances(train, classes, "improvised")
    is_wanted = table["emo"].isin(["ang", "hap", "exc"])
    is_wanted &= (table["session"] != "2") & (table["style"] == "improvised")
    assert [*labelled] == table["id"][is_wanted].tolist()

    targets, predictions = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 3]
    expected = emotion_scores(
        [*map(str, targets)], [*map(str, predictions)], [*"0123"]
    )
    scores = data.emotion_scores(targets, predictions)
    assert scores == pytest.approx({k: 100 * v for k, v in expected.items()})


def load_module(checkout, path):
    """Imports a file of the recipes there."""
    path = checkout / "recipes" / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
