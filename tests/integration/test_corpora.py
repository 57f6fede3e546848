"""Own corpora, RAVDESS, and adapters of several corpora."""

import shutil

import pytest
import torch
from recipe_runs import (
    TINY,
    call,
    load_checkpoint,
    read_history,
    read_json,
    run_forked,
)
from speechbrain.dataio import audio_io

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.adapter_folder import (
    identify_adapter,
    read_adapter_record,
)

STAGES = ("adapter", "classifier")


@pytest.fixture(scope="module")
def usual(cache):
    """Options of a run of one epoch on any corpus."""
    return [*TINY, f"--cache_folder={cache}", "--number_of_epochs=1"]


@pytest.fixture
def train_universal(usual, tables):
    """Trains an adapter on the first table alone."""

    def train(folder, *options):
        call(
            *("train_adapter.py", "adapter", *usual, "--num_attributes=8"),
            *(f"--corpora={tables[0]}", f"--output_folder={folder}", *options),
        )

    return train


def read_settings(run_folder):
    """Reads the settings that a run began with."""
    return read_json(run_folder, "save/settings.json")["settings"]


@pytest.mark.parametrize(
    "fold_by, speakers", [("session", [13, 14]), ("speaker", [12])]
)
def test_ravdess_is_read_and_cross_validated(
    usual, tmp_path, fold_by, speakers
):
    seconds = torch.arange(4800) / 16000
    for number in range(4 * 8):
        actor, emotion = 11 + number // 8, 1 + number % 8
        place = tmp_path / "RAVDESS" / f"Actor_{actor}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"03-01-{emotion:02d}-01-01-01-{actor}.flac"
        tone = torch.sin(6.28 * (100 * emotion + actor) * seconds)
        audio_io.save(path, 0.3 * tone[None], 16000)
    run_forked(
        *("cross_validate.py", *STAGES, *usual, "--num_attributes=8"),
        *("--adapter_training=True", "--folds=2"),
        f"--data_folder={tmp_path / 'RAVDESS'}",
        *("--model_selection=best", f"--output_folder={tmp_path / 'out'}"),
        f"--fold_by={fold_by}",
        corpus="RAVDESS",
    )
    report = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "**Optimistic**: the epoch was chosen on the very" in report
    results = read_json(tmp_path, "out", "results.json")
    assert results["classes"] == ["angry", "happy", "sad", "neutral"]
    (held_out,) = results["runs"]
    session = "13_14" if fold_by == "session" else "Actor_12"
    assert (held_out["session"], held_out["n"]) == (session, 4 * len(speakers))
    record = read_adapter_record(tmp_path / "out/seed1993/fold2/adapter")
    heard = [f"Actor_{n}" for n in (11, 12, 13, 14) if n not in speakers]
    assert record["speakers"] == heard
    # all emotions serve adapter training; each has two digests
    assert len(record["utterances"]) == 2 * 8 * len(heard)


def test_one_adapter_serves_another_corpus_with_other_classes(
    usual, tables, train_universal, tmp_path
):
    universal = tmp_path / "universal"
    train_universal(universal)
    assert read_settings(universal)["fold"] is None
    assert read_json(universal, "valid.json") == {}
    arguments = ["cross_validate.py", *STAGES, *usual, "--folds=2"]
    earlier = f"--adapter_folder={universal}"
    second = [
        f"--corpus_csv={tables[1]}",
        f"--output_folder={tmp_path / 'out'}",
    ]
    call(*arguments, earlier, *second)
    results = read_json(tmp_path, "out", "results.json")
    assert results["classes"] == ["cold", "hot"]
    assert [run["session"] for run in results["runs"]] == ["2"]
    assert results["settings"]["adapter_folder"] == str(universal)
    assert not any(k.startswith("adapter.") for k in results["settings"])
    report = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "6 speakers of first" in report and str(universal) in report
    # statistics of stage 1 go on
    stage_1 = load_checkpoint(universal)["teacher"]["model.input_mean"]
    model = load_checkpoint(tmp_path / "out/seed1993/fold2/classifier")["model"]
    assert torch.equal(stage_1, model["backbone.input_mean"])
    with pytest.raises(RecipeError, match="another value of the adapter"):
        call(*arguments, "--adapter_training=False", *second)
    # the corpus that it has heard is refused before any work
    first = [f"--corpus_csv={tables[0]}", f"--output_folder={tmp_path / '1'}"]
    with pytest.raises(RecipeError, match="fold 2: speaker Ses02. "):
        call(*arguments, earlier, *first)
    assert not (tmp_path / "1" / "seed1993").exists()


def test_a_comparison_takes_an_earlier_adapter_for_each_seed(
    usual, tables, train_universal, tmp_path
):
    for seed in (3, 4):
        train_universal(tmp_path / f"adapter {seed}", f"--seed={seed}")
    out = tmp_path / "out"
    arguments = [
        *("compare", *STAGES, *usual, "--folds=2"),
        f"--corpus_csv={tables[1]}",
        f"--adapter_folder={tmp_path}/adapter {{seed}}",
        f"--output_folder={out}",
    ]
    call(*arguments, "--seeds=3,4")
    report = (out / "with_adapter/report.md").read_text("utf-8")
    assert "one earlier adapter for each seed" in report
    assert not list(out.rglob("adapter.json"))  # none is trained
    for seed in (3, 4):
        run = out / f"with_adapter/seed{seed}/fold2/classifier"
        record = read_adapter_record(tmp_path / f"adapter {seed}")
        identity = read_settings(run)["adapter_identity"]
        assert identity == identify_adapter(record)
    # not by an adapter of another seed, nor by none
    shutil.copytree(tmp_path / "adapter 4", tmp_path / "adapter 5")
    with pytest.raises(RecipeError, match="trained with seed=4, but .seed."):
        call(*arguments, "--seeds=3,5")
    with pytest.raises(RecipeError, match="adapter 6 holds no adapter.json"):
        call(*arguments, "--seeds=3,6")


def test_a_finished_fold_with_further_corpora_is_not_run_again(
    usual, tables, tmp_path
):
    arguments = [
        *("cross_validate.py", *STAGES, *usual, "--folds=2"),
        *("--num_attributes=8", f"--corpus_csv={tables[1]}"),
        *(f"--corpora={tables[0]}", f"--output_folder={tmp_path}"),
    ]
    call(*arguments)
    adapter, classifier = (tmp_path / "seed1993/fold2" / s for s in STAGES)
    files = [*tmp_path.rglob("CKPT.yaml"), *tmp_path.rglob("scores.json")]
    before = {path: path.read_bytes() for path in files}
    assert len(before) >= 3
    call(*arguments)
    assert before == {path: path.read_bytes() for path in files}
    # the probe is of all corpora's training sessions
    rows = read_history(adapter)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert all(0.0 < row["probe_teacher"] <= 1.0 for row in rows)
    # with one epoch more, stage 2 begins anew
    call(*arguments, "--adapter.number_of_epochs=2")
    record = read_adapter_record(adapter)
    assert record["number_of_epochs"] == 2 and record["corpora"]
    identity = read_settings(classifier)["adapter_identity"]
    assert identity == identify_adapter(record)
