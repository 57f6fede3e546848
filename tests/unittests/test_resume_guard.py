"""A run goes on with the settings that it began with, or not at all."""

import json
import re

import pytest
from readings import SMALL, STAGES, copy_yaml, find_yaml, read

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training import resume_guard
from speechbrain_wap.training.command_line import read_command
from speechbrain_wap.training.experiment import Experiment
from speechbrain_wap.training.resume_guard import (
    LABELS,
    default_output_folder,
    name_data,
    record_settings,
    refuse_changes,
    restored_if_refused,
)

pytestmark = pytest.mark.usefixtures("workplace")


def record(stage, *options, **added):
    """Records the settings of a run as its script does."""
    settings = {**read(stage, *options).settings, "encoder_key": "0123"}
    record_settings("save", {**settings, **added})


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_goes_on_with_the_same_settings(workplace, stage):
    for _ in range(2):
        record(stage, "--corpora=a.csv" if stage == "adapter" else "--fold=2")
    recorded = json.loads((workplace / "save" / "settings.json").read_text())
    assert recorded["settings"]["seed"] == 1993


@pytest.mark.parametrize(
    "stage, option",
    [
        ("adapter", "fold=2"),
        ("adapter", "seed=7"),
        ("adapter", "encoder_layer=3"),
        ("adapter", "lr=0.5"),
        ("adapter", "d_model=192"),
        ("adapter", "revive_after=null"),
        ("adapter", "adapter_data=all"),
        ("adapter", "corpus_weight=0.5"),
        ("adapter", "corpora=a.csv,b.csv"),
        ("adapter", "corpora=[{table: a.csv, weight: 2}]"),
        ("adapter", "precision=bf16"),
        ("adapter", "max_grad_norm=1.5"),
        ("adapter", "student.dropout={dropout: 0.5}"),
        ("classifier", "classes=all"),
        ("classifier", "classes={a: [ang], b: [sad]}"),
        ("classifier", "adapter_branch=student"),
        ("classifier", "label_fraction=0.5"),
        # of the system that is included
        ("classifier", "sap_heads=2"),
        ("classifier", "d_model=192"),
        ("classifier", "system=linear"),
        # plain values within what is wired
        ("classifier", "opt_class.weight_decay={weight_decay: 0.5}"),
        ("classifier", "lr_schedule.end={end: 0.5}"),
    ],
)
def test_another_value_is_refused_by_the_keys_name(workplace, stage, option):
    key, _, text = option.partition("=")
    record(stage)
    before = (workplace / "save" / "settings.json").read_text()
    mistake = rf"save holds a run with .*\b{re.escape(key)}=.*: choose another"
    for go_on in (record_settings, refuse_changes):
        settings = read(stage, f"--{key.partition('.')[0]}={text}").settings
        with pytest.raises(RecipeError, match=mistake):
            go_on("save", settings)
    assert (workplace / "save" / "settings.json").read_text() == before


MY_KEY = "\nseed: 1993"
WIRED = "!new:speechbrain_wap.teacher.EMATeacher"
RATE = "\n    lr: !ref <lr>"
PLACE = "checkpoints_dir: !ref <save_folder>"
TUPLE = f"{MY_KEY}\nmy_key: !tuple"
MY_LIST = f"{MY_KEY}\nmy_list:\n  - !new:torch.nn."


@pytest.mark.parametrize(
    "before, after, mistake",
    [
        (MY_KEY, f"{MY_KEY}\nmy_key: 1", "my_key=null (now 1)"),
        (f"{MY_KEY}\nmy_key: 1", f"{MY_KEY}\nmy_key: 2", "my_key=1 (now 2)"),
        (f"{MY_KEY}\nmy_key: 1", MY_KEY, "my_key=1 (now null)"),
        (f"{TUPLE} (1, 2)", f"{TUPLE} (1, 3)", '="(1, 2)" (now "(1, 3)")'),
        (WIRED, "!new:moved.Other", 'teacher="EMATeacher" (now "Other")'),
        (WIRED, "!new:moved.EMATeacher", None),  # it has only moved
        (f"{MY_LIST}ReLU", f"{MY_LIST}GELU", '0="ReLU" (now "GELU")'),
        (
            f"{RATE} * 2",
            f"{RATE} * 4",
            'opt_class.lr="<lr> * 2" (now "<lr> * 4")',
        ),
        (PLACE, f"{PLACE}/there", None),
    ],
)
def test_a_yaml_of_ones_own_is_compared_by_keys_and_classes(
    workplace, before, after, mistake
):
    old = next(x for x in (WIRED, RATE, PLACE, MY_KEY) if before.startswith(x))
    record(copy_yaml(workplace / "a", "adapter", (old, before)))
    changed = copy_yaml(workplace / "b", "adapter", (old, after))
    if mistake is None:
        record(changed)
        moved = changed.parent.parent / "moved.py"
        moved.write_text("from speechbrain_wap.teacher import EMATeacher\n")
        teacher = read(changed, *SMALL).build()["teacher"]
        assert type(teacher).__module__ == "speechbrain_wap.teacher"
        return
    with pytest.raises(RecipeError, match=re.escape(f"{mistake}: ")):
        record(changed)


@pytest.mark.parametrize("key", [*LABELS, "num_labelled"])
def test_what_the_script_finds_out_is_guarded_too(key):
    record("classifier", **{key: {"a": 1}})
    said = LABELS.get(key, f"{key}=")
    with pytest.raises(RecipeError, match=re.escape(said)):
        record("classifier", **{key: {"a": 2}})
    # before the corpus is prepared, it is not known yet
    refuse_changes("save", read("classifier").settings)
    with pytest.raises(RecipeError, match=re.escape(said)):
        record_settings("save", read("classifier").settings)


@pytest.mark.parametrize(
    "stage, option",
    [
        *(
            ("adapter", f"{key}_folder=x")
            for key in ("data", "cache", "output")
        ),
        ("adapter", "corpus_csv=own.csv"),
        ("adapter", "train_annotation=x.json"),
        ("adapter", "num_workers=2"),
        ("adapter", "feature_workers=2"),
        ("adapter", "dataloader_options={pin_memory: True}"),
        ("adapter", "ckpt_interval_minutes=1"),
        ("adapter", "ckpt_interval_steps=1"),
        ("adapter", "probe_every=0"),
        ("adapter", "probe_utterances=5"),
        ("adapter", "train_logger={precision: 3}"),
        ("adapter", "skip_prep=True"),
        ("adapter", "max_skipped=0.5"),
        ("adapter", "noprogressbar"),
        # guarded by the features' key, and the adapter by its content
        ("adapter", "encoder_source=/elsewhere/hubert"),
        ("classifier", "adapter_folder=A"),
        # whose they are shows in who is left out
        ("adapter", "corpora=[{table: elsewhere/a.csv, speakers: own}]"),
    ],
)
def test_where_things_lie_and_how_a_run_is_watched_may_change(stage, option):
    record(stage, *["--corpora=a.csv"] * option.startswith("corpora"))
    record(stage, f"--{option}")


@pytest.mark.parametrize("stage", STAGES)
def test_the_number_of_epochs_may_grow_but_not_shrink(stage):
    for epochs in (3, 5):
        record(stage, f"--number_of_epochs={epochs}")
    with pytest.raises(RecipeError, match="number_of_epochs=5.* shrink to 4"):
        record(stage, "--number_of_epochs=4")
    record(stage, "--number_of_epochs=5")


def test_another_number_of_ranks_may_share_the_same_batch(monkeypatch, caplog):
    for ranks, batch_size, says in (
        (1, 8, ""),
        (2, 4, ""),
        (4, 4, "is 16, not"),
    ):
        monkeypatch.setattr(resume_guard, "count_ranks", lambda n=ranks: n)
        caplog.clear()
        record("adapter", f"--batch_size={batch_size}")
        assert says in caplog.text and bool(says) == bool(caplog.text)
    with pytest.raises(RecipeError, match=r"batch_size=4 \(now 8\)"):
        record("adapter", "--batch_size=8")


@pytest.mark.parametrize(
    "content, sentence",
    [
        (
            '{"layout": 1, "settings": {}, "number_of_epochs": 1}',
            "earlier vers",
        ),
        (
            '{"settings": {"lr": 1}, "number_of_epochs": 1}',
            "earlier version of",
        ),
        ("{", "save.settings.json"),
    ],
)
def test_a_record_that_cannot_be_compared_is_refused(
    workplace, content, sentence
):
    (workplace / "save").mkdir()
    (workplace / "save" / "settings.json").write_text(content)
    with pytest.raises(RecipeError, match=f"{sentence}.*delete this one"):
        record("adapter")


def test_a_run_that_is_refused_leaves_the_files_of_the_one_before(workplace):
    kept, made = workplace / "corpus.csv", workplace / "train.json"
    for earlier in (False, True):
        kept.write_text("before")
        made.unlink(missing_ok=True)
        with pytest.raises(RecipeError, match="no fold"):
            with restored_if_refused("save", [kept, made]):
                kept.write_text("after")
                made.write_text("new")
                raise RecipeError("no fold 7.")
        # without an earlier run, nothing is put back
        assert kept.read_text() == ("before" if earlier else "after")
        record("adapter")


# The default folder ----------------------------------------------------------


def name_folder(stage, *options):
    """Names the folder of a run."""
    reading = read(stage, *options)
    data = name_data(reading.data, reading.corpora)
    return default_output_folder(reading.settings, "R", data)


CHANGES = {
    "adapter": [
        ["--data_folder=E"],
        ["--corpus_csv=own.csv"],
        ["--data_folder=", "--corpora=a.csv"],
        ["--fold=2"],
        ["--seed=7"],
        ["--encoder_source=fbank"],
        ["--encoder_source=/other/hubert-large-ll60k"],
        ["--encoder_layer=3"],
        ["--lr=0.5"],
        ["--number_of_epochs=7"],
        ["--adapter_data=all"],
        ["--revive_after=null"],
        ["--corpora=a.csv"],
        ["--corpora=x/a.csv"],
        ["--corpora=[{table: a.csv, speakers: own}]"],
        ["--corpora=[{table: a.csv, weight: 2}]"],
        ["--opt_class={weight_decay: 0.5}"],
        ["--precision=bf16"],
    ],
    "classifier": [
        ["--classes={a: [ang], b: [sad]}"],
        ["--classes={a: [ang], c: [sad]}"],
        ["--classes=all"],
        ["--dialogue_style=all"],
        ["--adapter_folder=A"],
        ["--adapter_folder=B"],
        ["--sap_heads=2"],
        ["--system=linear"],
    ],
}


@pytest.mark.parametrize("stage", STAGES)
def test_runs_with_other_settings_never_share_a_folder(stage):
    changes = [[], *CHANGES[stage]]
    folders = [name_folder(stage, "--data_folder=D", *more) for more in changes]
    assert len(set(folders)) == len(folders)
    # what does not change the numbers does not change the name
    for option in ("cache_folder=C", "train_log=L", "num_workers=3"):
        same = name_folder(stage, "--data_folder=D", f"--{option}")
        assert same == folders[0]


@pytest.mark.parametrize(
    "options, name",
    [
        (["--fold=2", "--seed=7", "--encoder_layer=3"], "layer_3/fold2-seed7"),
        (["--encoder_layer=[1, 2]"], r"layer_1\+2/fold1-seed1993"),
        (["--data_folder=", "--corpora=a.csv"], "layer_last/no_fold-seed1993"),
    ],
)
def test_a_folders_name_tells_encoder_layer_fold_and_seed(options, name):
    options = ["--data_folder=D", "--encoder_source=/x/whisper/", *options]
    folder = name_folder("adapter", *options)
    assert re.fullmatch(f"R/whisper-{name}-[0-9a-f]{{8}}", folder)


def test_the_folder_lies_where_the_yaml_says_or_where_the_user_says(
    import_script,
):
    needed = import_script(
        "recipes/IEMOCAP/wap_adapter/train_adapter.py"
    ).NEEDED
    for options, folder in (
        ([], r"results/adapter/fbank-layer_last/fold1-seed1993-[0-9a-f]{8}"),
        (["--output_folder=mine"], "mine"),
    ):
        command = read_command([find_yaml(), *SMALL, *options])
        experiment = Experiment(command, needed)
        assert re.fullmatch(folder, str(experiment.folder))
        for place in (experiment.save_folder, experiment.history):
            assert place.startswith(f"{experiment.folder}/")
        assert f"save_folder: {experiment.folder}/save" in experiment.text
