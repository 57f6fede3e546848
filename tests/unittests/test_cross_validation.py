"""What a cross-validation is told: which stage, folds, seeds and folders."""

import json
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from readings import FILES, SMALL, STAGES, find_yaml

from speechbrain_wap.comparisons import compare, sweep, table1
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import try_lock
from speechbrain_wap.reports.cross_validation_report import summarise_settings
from speechbrain_wap.training import resume_guard
from speechbrain_wap.training.command_line import read_command, split_options
from speechbrain_wap.training.cross_validation import (
    CrossValidation,
    load_scripts,
    route_options,
)
from speechbrain_wap.training.hparams_file import HparamsFile
from speechbrain_wap.training.prepare_folds import prepare_folds
from speechbrain_wap.training.run_folds import SCORES, list_finished, run_fold

pytestmark = pytest.mark.usefixtures("workplace")


def plan(*options):
    """Reads the command line behind the two YAML files."""
    return CrossValidation([*FILES, *options])


def test_its_own_paths_are_resolved_as_the_keys_are(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    options = ["--data_folder=D", "--output_folder=~/x"]
    assert plan(*options).output_folder == "/home/ada/x"
    made = plan(*options, "--adapters_folder=$HOME/y")
    assert made.find_adapter(1, 2) == "/home/ada/y/seed1/fold2/adapter"
    made = plan(*options, "--adapter_folder=~/z_{seed}", "--seeds=1")
    assert made.find_adapter(1, 2) == "/home/ada/z_1"
    with pytest.raises(RecipeError, match="--output_folder=.*.NOWHERE is not"):
        plan("--data_folder=D", "--output_folder=$NOWHERE/x")


# To which stage an option goes -----------------------------------------------


@pytest.fixture
def route():
    """Routes options to the stages of the IEMOCAP recipe, as they are typed."""
    stages = {stage: HparamsFile(find_yaml(stage)).keys() for stage in STAGES}

    def run(*arguments):
        own, routed = route_options(split_options(list(arguments))[1], stages)
        typed = {
            stage: [f"--{k}" if v is None else f"--{k}={v}" for k, v in options]
            for stage, options in routed.items()
        }
        return own, typed

    return run


@pytest.mark.parametrize(
    "option, adapter, classifier",
    [
        ("--mask_ratio=0.2", True, False),
        ("--sap_heads=2", False, True),  # the system's
        ("--system=linear", False, True),
        ("--classes={a: [x], b: [y=z]}", False, True),
        ("--d_model=8", True, True),
        ("--data_folder=/a b/c=d #1", True, True),
        ("--noprogressbar", True, True),
    ],
)
def test_an_option_goes_to_the_stages_that_have_it(
    route, option, adapter, classifier
):
    expected = {"adapter": [option] * adapter}
    expected["classifier"] = [option] * classifier
    assert route(option) == ({}, expected)


def test_a_prefix_sends_an_option_to_one_stage_and_the_last_one_counts(route):
    for option in ("encoder_source=adapter.x", "precision=bf16", "compile"):
        _, routed = route(f"--adapter.{option}")
        assert routed == {"adapter": [f"--{option}"], "classifier": []}
    _, routed = route("--lr=1", "--adapter.lr=2", "--lr=3")
    assert routed["adapter"] == ["--lr=1", "--lr=2", "--lr=3"]
    assert routed["classifier"] == ["--lr=1", "--lr=3"]


def test_its_own_options_are_kept_from_the_stages(route):
    names = ["folds", "seeds", "adapter_training", "adapters_folder", "jobs"]
    given = dict.fromkeys([*names, "output_folder"], "my results=1")
    options = [f"--{key}={text}" for key, text in given.items()]
    assert route(*options) == (given, {"adapter": [], "classifier": []})
    for key in given:
        with pytest.raises(RecipeError, match=f"--{key} needs a value"):
            route(f"--{key}")


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--sap_head=2", "did you mean --sap_heads"),
        ("--fold=1", "use --folds"),
        ("--adapter.num_layer=2", "did you mean --adapter.num_layers"),
        ("--adapter.sap_heads=2", "unknown key --adapter.sap_heads"),
        ("--adapter.folds=1", "unknown key --adapter.folds"),
        ("--classifier.test_only", "--classifier.test_only is for a single"),
        # each run has its own
        ("--train_log=x", "--train_log cannot be set here"),
        ("--adapter.seed=1", "--adapter.seed cannot be set here"),
        ("--classifier.adapter_folder=A", "use --adapter_folder without"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(route, option, hint):
    with pytest.raises(RecipeError) as error:
        route("--lr=1", option)
    assert hint in str(error.value)


# What is run -----------------------------------------------------------------


def test_all_folds_and_the_yamls_seed_are_the_default():
    command = plan("--data_folder=D")
    assert (command.folds, command.seeds, command.jobs) == (None, [1993], 1)
    assert command.adapter_training and command.stages == list(STAGES)
    overrides = [command.commands[stage].overrides for stage in STAGES]
    assert overrides == [{"data_folder": "D"}] * 2
    command = plan("--folds=2,1", "--seeds=[7, 8, 7]", "--jobs=3")
    assert (command.folds, command.seeds) == ([2, 1], [7, 8])
    assert command.jobs == 3


@pytest.mark.parametrize(
    "options, sentence",
    [
        ([FILES[0]], "two hyperparameter files"),
        (["--seeds=1.5"], "--seeds=1.5 must be whole numbers"),
        (["--jobs=0"], "--jobs=0 must be a whole number of at least 1"),
        (["--adapter_folder="], "--adapter_folder= is empty"),
        (["--adapter_training=False", "--adapters_folder=A"], "is of no use"),
        # stage 1 is left out
        (["--adapter_folder=A", "--mask_ratio=0.5"], "has no effect"),
        (["--adapter_folder=A", "--adapter.lr=0.5"], "has no effect"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan("--data_folder=D", *options)


def test_stage_1_may_be_left_out_or_be_an_earlier_one():
    without = plan("--corpora=a.csv", "--adapter_training=false")
    assert not without.adapter_training and not without.adapter_folder
    assert without.stages == ["classifier"] and not without.corpora
    assert without.earlier_adapters == {} and not without.has_adapter
    command = plan("--adapter_folder=A", "--seeds=1,2", "--sap_heads=2")
    assert not command.adapter_training and not command.has_adapter_per_seed
    assert command.earlier_adapters == {1: "A", 2: "A"}
    command = plan("--adapter_folder=A_{seed}", "--seeds=1,2")
    assert command.has_adapter_per_seed
    assert command.find_adapter(2, fold=5) == "A_2"
    # or that of another run
    command = plan("--output_folder=O", "--adapters_folder=A")
    assert command.find_adapter(7, fold=2) == "A/seed7/fold2/adapter"


@pytest.fixture
def without_stage_1(tmp_path):
    """Makes YAML files that leave stage 1 out, as typed first."""
    shutil.copytree(Path(FILES[0]).parent, tmp_path / "hparams")
    files = [str(tmp_path / "hparams" / Path(file).name) for file in FILES]
    text = Path(files[1]).read_text()
    usual = "adapter_training: True"
    assert text.count(usual) == 1
    Path(files[1]).write_text(text.replace(usual, "adapter_training: False"))
    return files


def test_the_yaml_says_whether_stage_1_is_run(without_stage_1):
    arguments = [*without_stage_1, "--data_folder=D"]
    left_out = CrossValidation(arguments)
    assert not left_out.has_adapter and left_out.stages == ["classifier"]
    folder = left_out.output_folder
    # what is typed counts more, and names the folder as ever
    wanted = CrossValidation([*arguments, "--adapter_training=True"])
    assert wanted.adapter_training and wanted.stages == list(STAGES)
    assert wanted.output_folder == plan("--data_folder=D").output_folder
    typed = plan("--data_folder=D", "--adapter_training=False")
    assert typed.output_folder == folder != wanted.output_folder
    earlier = CrossValidation([*arguments, "--adapter_folder=A"])
    assert earlier.has_adapter and not earlier.adapter_training
    # no silent loss of what only stage 1 reads
    options = ("--num_attributes=8", "--adapter.lr=1", "--corpora=a.csv")
    for option in (*options, "--adapters_folder=A"):
        sentence = f"{option.partition('=')[0]} has no effect with adapter_tra"
        sentence += "ining: False of .*classifier.yaml.*--adapter_training=True"
        with pytest.raises(RecipeError, match=sentence):
            CrossValidation([*arguments, option])
        CrossValidation([*arguments, option, "--adapter_training=True"])
    CrossValidation([*arguments, *options, "--adapter_training=False"])


def test_the_key_is_the_classifiers(without_stage_1):
    arguments = [*without_stage_1, "--data_folder=D"]
    for file in without_stage_1:
        text = Path(file).read_text().replace("adapter_training: False", "")
        Path(file).write_text(text)
    assert CrossValidation(arguments).adapter_training
    Path(file).write_text(text + "\nadapter_training: 'no'\n")
    with pytest.raises(RecipeError, match="adapter_training=no must be True"):
        CrossValidation(arguments)
    Path(file).write_text(text)
    file = Path(arguments[0])
    file.write_text(file.read_text() + "\nadapter_training: False\n")
    with pytest.raises(RecipeError, match="adapter.yaml: adapter_training bel"):
        CrossValidation(arguments)


def test_a_change_of_the_key_is_named_alone(tmp_path):
    """Stage 1's keys, of which there are a hundred, come or go with it."""
    made = {"adapter_training": True, "adapter.lr": 1, "classifier.lr": 1}
    made["number_of_epochs"] = 0
    resume_guard.record_settings(tmp_path, made)
    resume_guard.refuse_changes(tmp_path, made, is_complete=True)
    changed = {k: v for k, v in made.items() if k != "adapter.lr"}
    changed["adapter_training"] = False
    for before, now in ((made, changed), (changed, made)):
        (tmp_path / resume_guard.RECORD).unlink()
        resume_guard.record_settings(tmp_path, before)
        with pytest.raises(RecipeError) as error:
            resume_guard.refuse_changes(tmp_path, now, is_complete=True)
        assert "adapter_training=" in str(error.value)
        assert "adapter.lr" not in str(error.value)


def test_what_compares_adapter_training_runs_it_whatever_the_yaml_says(
    without_stage_1,
):
    typed = [*without_stage_1, "--data_folder=D"]
    plan, _, _ = compare._read_arguments(typed)
    assert plan.adapter_training
    plan, _, _ = compare._read_arguments([*typed, "--adapter_folder=A"])
    assert plan.adapter_folder == "A" and not plan.adapter_training
    for options in ("num_attributes=8", "lr=1,2"):
        _, swept, others = sweep._read_arguments([*typed, "--sweep", options])
        plans, _ = sweep._list_plans("R", others, swept)
        trained = [plan.adapter_training for plan in plans.values()]
        assert any(trained) and not all(trained)
    typed.append("--adapter.probe_every=0")
    files, options, entries, *_ = table1._read_arguments(typed)
    # of each system one configuration, and one that does not say it
    trained = [e._replace(configurations=[{}]) for e in entries if not e.probe]
    trained.append(table1._Entry(""))
    for name, plans in table1.list_plans(files, options, trained).items():
        wanted = name in ("", "WAP-Transformer")
        assert {p.adapter_training for p in plans.values()} == {wanted}
    earlier = table1._Entry("e", {"adapter_folder": "A"})
    (plan,) = table1.list_plans(files, [("data_folder", "D")], [earlier])[
        "e"
    ].values()
    assert plan.has_adapter and not plan.adapter_training


def test_a_single_run_takes_no_word_on_stage_1():
    for arguments in (
        [FILES[1], "--adapter_training=True"],
        [FILES[0], "--adapter_training=True"],
    ):
        with pytest.raises(RecipeError, match="is for cross_validate.py"):
            read_command(arguments)
    with pytest.raises(RecipeError, match="use --adapter_training without"):
        plan("--data_folder=D", "--classifier.adapter_training=False")


# Where it is written ---------------------------------------------------------


def test_what_is_run_decides_about_the_default_folder():
    options = [
        [],
        ["--adapter_training=False"],
        ["--adapter.lr=0.5"],
        ["--classifier.lr=0.5"],
        ["--corpora=a.csv"],
        ["--adapter_folder=A"],
        ["--adapter_folder=B"],
    ]
    folders = [plan("--data_folder=D", *more).output_folder for more in options]
    assert len(set(folders)) == len(folders)
    assert all(x.startswith("results/cross_validation/") for x in folders)
    assert folders[1].endswith("-no_adapter")
    assert folders[-1].endswith("-earlier_adapter")
    # folds and seeds may be added
    more = ["--folds=2", "--seeds=1,2", "--jobs=2", "--num_workers=1"]
    assert plan("--data_folder=D", *more).output_folder == folders[0]
    command = plan("--data_folder=D", "--output_folder=O")
    assert command.output_folder == command.adapters_folder == "O"


def test_results_say_what_they_came_about_with():
    command = plan("--data_folder=D", "--sap_heads=2", "--seeds=1,2")
    summary = summarise_settings(command, [1, 3])
    assert summary == json.loads(json.dumps(summary))
    expected = {
        "adapter_training": True,
        "folds": [1, 3],
        "seeds": [1, 2],
        "adapter.mask_ratio": 0.4,
        "classifier.sap_heads": 2,
        "classifier.classes": command.settings["classifier"]["classes"],
    }
    assert expected.items() <= summary.items()
    # not where things lie, nor what is told otherwise
    assert not {"adapter.data_folder", "classifier.seed"} & summary.keys()


# Before any work -------------------------------------------------------------


def test_a_system_without_backbone_has_no_use_for_an_adapter(workplace):
    command = plan(*SMALL[:2], "--system=linear", "--adapter_folder=A")
    with pytest.raises(RecipeError, match="MeanPooling.* has no backbone"):
        prepare_folds(command)
    assert not list(workplace.rglob("corpus.csv"))
    # the corpus does not exist, which is what comes next
    command = plan(*SMALL[:2], "--system=linear", "--adapter_training=False")
    with pytest.raises(RecipeError, match="D"):
        prepare_folds(command)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--adapter.d_model=16"], "d_model is 16 for the adapter, but 8 for"),
        (["--classifier.protocol=held_out"], "protocol is paper for the"),
        (["--ema_decay_start=1.0"], "must not be above ema_decay"),
        (["--data_folder="], "no corpus given"),
    ],
)
def test_what_a_stage_would_refuse_later_is_refused_at_once(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        prepare_folds(plan(*SMALL, *options))
    assert not Path("D").exists()


# What several processes share ------------------------------------------------


def finish(root, seed, fold, epochs=100):
    """Writes what a finished fold leaves of its scores."""
    keys = dict.fromkeys(("classes", "session", "n", "confusion", *SCORES), 0)
    scores = {**keys, "seed": seed, "fold": fold, "number_of_epochs": epochs}
    path = Path(root, f"seed{seed}", f"fold{fold}", "classifier", "scores.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(scores))


def test_what_any_process_has_finished_is_counted(tmp_path):
    options = ["--data_folder=D", f"--output_folder={tmp_path}"]
    options.append("--adapter_training=False")
    for seed, fold in ((2, 10), (2, 9), (1, 9)):
        finish(tmp_path, seed, fold)
    finish(tmp_path, 1, 3, epochs=7)  # others are wanted
    (tmp_path / "seed1" / "fold4").mkdir()
    (tmp_path / "seed1" / "fold5_old").mkdir()
    for more, expected in (
        (["--folds=9"], [(1, 9), (2, 9), (2, 10)]),
        # as it would have been written without the others
        (["--seeds=2,1", "--folds=10,9"], [(2, 10), (2, 9), (1, 9)]),
        (["--seeds=2,1"], [(2, 9), (2, 10), (1, 9)]),
    ):
        finished, unfinished = list_finished(plan(*options, *more))
        assert [(r["seed"], r["fold"]) for r in finished] == expected
        assert unfinished == [(1, 3), (1, 4)]


def test_a_fold_that_is_taken_is_left_and_an_adapter_waited_for(tmp_path):
    options = [*SMALL, f"--output_folder={tmp_path}/one"]
    options.append(f"--adapters_folder={tmp_path}/one/../one")
    command = plan(*options, "--folds=2")
    folder = tmp_path / "one" / "seed1993" / "fold2"
    with try_lock(folder / ".lock") as is_locked:
        assert is_locked and run_fold(command, 2, 1993) is None
    # its own adapter, by another path, is not waited for; it has no data
    with pytest.raises(RecipeError, match="data_folder=D"):
        run_fold(command, 2, 1993)
    other = plan(*options, f"--output_folder={tmp_path}/other")
    claimed, ended = threading.Event(), []

    def train():
        with try_lock(folder / ".lock"):
            claimed.set()
            time.sleep(0.5)
            ended.append(True)

    thread = threading.Thread(target=train)
    thread.start()
    claimed.wait()
    with pytest.raises(RecipeError, match="data_folder=D"):
        run_fold(other, 2, 1993)
    assert ended
    thread.join()


def test_the_train_scripts_are_those_of_the_folder(monkeypatch):
    scripts = load_scripts()
    assert list(scripts) == list(STAGES)
    assert all(hasattr(script, "run") for script in scripts.values())
    for stage in STAGES:
        monkeypatch.delitem(sys.modules, f"train_{stage}")
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(RecipeError, match="there is no train_adapter.py in"):
        load_scripts()
