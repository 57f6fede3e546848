"""A run goes on with the settings that it began with, or not at all."""

import re

import pytest
from readings import SMALL, copy_yaml, find_yaml, read

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
)

pytestmark = pytest.mark.usefixtures("workplace")


def record(stage, *options, **added):
    """Records the settings of a run as its script does."""
    settings = {**read(stage, *options).settings, "encoder_key": "0123"}
    record_settings("save", {**settings, **added})


@pytest.mark.parametrize(
    "stage, option",
    [
        ("adapter", "fold=2"),
        ("adapter", "revive_after=null"),
        ("adapter", "corpora=[{table: a.csv, weight: 2}]"),
        ("adapter", "precision=bf16"),
        ("classifier", "classes={a: [ang], b: [sad]}"),
        # of the system that is included
        ("classifier", "sap_heads=2"),
        ("classifier", "system=linear"),
        # plain values within what is wired
        ("classifier", "lr_schedule.end={end: 0.5}"),
    ],
)
def test_another_value_is_refused_by_the_keys_name(workplace, stage, option):
    key, _, text = option.partition("=")
    record(stage)
    before = (workplace / "save" / "settings.json").read_text()
    mistake = rf"save holds a run with .*\b{re.escape(key)}=.*: choose another"
    settings = read(stage, f"--{key.partition('.')[0]}={text}").settings
    for go_on in (record_settings, refuse_changes):
        with pytest.raises(RecipeError, match=mistake):
            go_on("save", settings)
    assert (workplace / "save" / "settings.json").read_text() == before


MY_KEY = "\nseed: 1993"
WIRED = "!new:speechbrain_wap.teacher.EMATeacher"
RATE = "\n    lr: !ref <lr>"
PLACE = "checkpoints_dir: !ref <save_folder>"
MY_LIST = f"{MY_KEY}\nmy_list:\n  - !new:torch.nn."


@pytest.mark.parametrize(
    "before, after, mistake",
    [
        (MY_KEY, f"{MY_KEY}\nmy_key: 1", "my_key=null (now 1)"),
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
    settings = {"lr": 1.0, "number_of_epochs": 1}
    record_settings("save", {**settings, key: {"a": 1}})
    said = LABELS.get(key, f"{key}=")
    with pytest.raises(RecipeError, match=re.escape(said)):
        record_settings("save", {**settings, key: {"a": 2}})
    # before the corpus is prepared, it is not known yet
    refuse_changes("save", settings)
    with pytest.raises(RecipeError, match=re.escape(said)):
        record_settings("save", settings)


@pytest.mark.parametrize(
    "options",
    [
        [f"--{key}_folder=x" for key in ("data", "cache", "output")],
        ["--corpus_csv=own.csv", "--train_annotation=x.json"],
        ["--num_workers=2", "--dataloader_options={pin_memory: True}"],
        ["--ckpt_interval_steps=1", "--probe_every=0", "--skip_prep=True"],
        # guarded by the features' key
        ["--encoder_source=/elsewhere/hubert"],
        ["--encoder_source=a/hubert", "--encoder_revision=v1"],
        # whose they are shows in who is left out
        ["--corpora=[{table: elsewhere/a.csv, speakers: own}]"],
    ],
)
def test_where_things_lie_and_how_a_run_is_watched_may_change(options):
    record("adapter", *["--corpora=a.csv"] * ("corpora" in options[0]))
    record("adapter", *options)


def test_another_number_of_ranks_may_share_the_same_batch(monkeypatch, caplog):
    for ranks, batch_size, says in ((1, 8, ""), (2, 4, ""), (4, 4, "is 16, ")):
        monkeypatch.setattr(resume_guard, "count_ranks", lambda n=ranks: n)
        caplog.clear()
        record("adapter", f"--batch_size={batch_size}")
        assert says in caplog.text and bool(says) == bool(caplog.text)
    with pytest.raises(RecipeError, match=r"batch_size=4 \(now 8\)"):
        record("adapter", "--batch_size=8")


@pytest.mark.parametrize(
    "content, sentence",
    [
        ('{"settings": {}, "number_of_epochs": 1}', "earlier version of"),
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


# The default folder ----------------------------------------------------------


def name_folder(stage, *options):
    """Names the folder of a run."""
    reading = read(stage, *options)
    data = name_data(reading.data, reading.corpora)
    return default_output_folder(reading.settings, "R", data)


def test_runs_with_other_settings_never_share_a_folder():
    changes = [
        [],
        ["--corpus_csv=own.csv"],
        ["--data_folder=", "--corpora=a.csv"],
        ["--encoder_source=/other/hubert-large-ll60k"],
        ["--number_of_epochs=7"],
        ["--corpora=[{table: x/a.csv, speakers: own}]"],
        ["--opt_class={weight_decay: 0.5}"],
    ]
    folders = [
        name_folder("adapter", "--data_folder=D", *more) for more in changes
    ]
    assert len(set(folders)) == len(folders)
    # what does not change the numbers does not change the name
    options = ["--cache_folder=C", "--train_log=L", "--num_workers=3"]
    same = name_folder("adapter", "--data_folder=D", *options)
    assert same == folders[0]
    earlier = name_folder("classifier", "--adapter_folder=A")
    assert earlier != name_folder("classifier")


def test_the_folder_lies_where_the_yaml_says_or_where_the_user_says(
    import_script,
):
    script = import_script("recipes/IEMOCAP/wap_adapter/train_adapter.py")
    for options, folder in (
        ([], r"results/adapter/fbank-layer_last/fold1-seed1993-[0-9a-f]{8}"),
        (["--output_folder=mine"], "mine"),
    ):
        command = read_command([find_yaml(), *SMALL, *options])
        experiment = Experiment(command, script.NEEDED)
        assert re.fullmatch(folder, str(experiment.folder))
        for place in (experiment.save_folder, experiment.history):
            assert place.startswith(f"{experiment.folder}/")
        assert f"save_folder: {experiment.folder}/save" in experiment.text
