"""Command line, YAML and settings guard: nothing is ignored or mixed up."""

import json
import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.key_values import NEEDED, NEEDED_IN_TRAINING
from speechbrain_wap.training.settings import (
    LABELS,
    check_values,
    default_output_folder,
    load_recipe,
    parse_arguments,
    read_corpora,
    read_keys,
    read_settings,
    record_settings,
    run_script,
    split_options,
)

RECIPES = ["IEMOCAP", "EmoDB", "RAVDESS"]
STAGES = ["adapter", "classifier"]
ALL_YAMLS = [(recipe, stage) for recipe in RECIPES for stage in STAGES]
# Small enough to be built in no time, and without a download.
SMALL = {
    "encoder_source": "fbank",
    "d_model": 8,
    "nhead": 2,
    "d_ffn": 8,
    "num_layers": 1,
}


def load(file, overrides):
    """Loads a YAML as its script does."""
    adapter = Path(file).name.startswith("adapter")
    expected_key = "mask_ratio" if adapter else "sap_heads"
    return load_recipe(file, overrides, RunOptions(), expected_key)


@pytest.fixture(scope="module")
def settings_of(repository):
    """Reads a recipe's settings, those without overrides only once."""
    kept = {}

    def read(yaml, **overrides):
        if overrides:
            return read_settings(yaml, overrides)
        if yaml not in kept:
            kept[yaml] = json.dumps(read_settings(yaml, {}))
        return json.loads(kept[yaml])

    return read


@pytest.fixture
def yaml_of(repository, monkeypatch, tmp_path):
    """Names a recipe's YAML file; the working folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def find(recipe="IEMOCAP", stage="adapter"):
        folder = repository / "recipes" / recipe / "wap_adapter" / "hparams"
        return str(folder / f"{stage}.yaml")

    return find


def test_zero_is_a_whole_number(yaml_of):
    overrides = {"seed": 0, "feature_workers": 0, "data_folder": "x"}
    settings = read_settings(yaml_of(), overrides)
    check_values(settings, "mask_ratio", yaml_of())
    assert type(settings["seed"]) is int


# The command line ------------------------------------------------------------


def test_values_may_hold_any_character(yaml_of):
    arguments = [
        "--data_folder=/my corpora/a=b,c #2",
        "--output_folder",
        "results/lr=0.1: {x} 'y'",
        "--encoder_source=C:\\models\\Ä",
        "--cache_folder=[1]",
    ]
    file, _, overrides = parse_arguments([yaml_of(), *arguments])
    assert file == yaml_of()
    assert overrides == {
        "data_folder": "/my corpora/a=b,c #2",
        "output_folder": "results/lr=0.1: {x} 'y'",
        "encoder_source": "C:\\models\\Ä",
        "cache_folder": "[1]",
    }
    settings = read_settings(yaml_of(), overrides)
    assert settings["encoder_source"] == "C:\\models\\Ä"


@pytest.mark.parametrize(
    "text", ["2024", "1e3", "yes", "[a]", "a: b", "null x"]
)
def test_folders_files_and_the_encoder_stay_text(yaml_of, text):
    keys = """data_folder output_folder encoder_source corpus_csv
        train_annotation corpus_table cache_folder skipped_csv""".split()
    options = [f"--{key}={text}" for key in keys]
    overrides = parse_arguments([yaml_of(), *options])[2]
    assert overrides == dict.fromkeys(keys, text)


@pytest.mark.parametrize("text", ["", "null", "None"])
def test_nothing_can_be_said_for_a_folder(yaml_of, text):
    yaml = yaml_of(stage="classifier")
    overrides = parse_arguments([yaml, f"--adapter_folder={text}"])[2]
    assert overrides == {"adapter_folder": None}


@pytest.mark.parametrize(
    "option, value",
    [
        ("fold=2", 2),
        ("mask_ratio=0.25", 0.25),
        ("mask_ratio=.5", 0.5),
        ("lr=1e-4", 1e-4),
        ("lr=2E-3", 2e-3),
        ("lr=1.5e-05", 1.5e-5),
        ("revive_after=null", None),
        ("mlp_residual=True", True),
        ("skip_prep=false", False),
        ("encoder_layer=last", "last"),
        ("encoder_layer=0", 0),
        ("protocol=held_out", "held_out"),
    ],
)
def test_other_values_are_what_the_yaml_would_read(yaml_of, option, value):
    key, _, text = option.partition("=")
    for arguments in ([f"--{option}"], [f"--{key}", text]):
        overrides = parse_arguments([yaml_of(), *arguments])[2]
        assert overrides == {key: value}
        assert type(overrides[key]) is type(value)
    # the YAML's own reader agrees
    assert type(YAML(typ="safe").load(f"a: {text}")["a"]) is type(value)


def test_a_value_that_is_no_yaml_is_refused_by_its_key(yaml_of):
    with pytest.raises(RecipeError, match="--fold=.*cannot be read"):
        parse_arguments([yaml_of(), "--fold={1: ["])


def test_a_key_without_value_is_refused(yaml_of):
    with pytest.raises(RecipeError, match="--fold needs a value"):
        parse_arguments([yaml_of(), "--fold"])


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--num_layer=2", "did you mean --num_layers"),
        ("--mask-ratio=0.1", "did you mean --mask_ratio"),
        ("--encodersource=fbank", "did you mean --encoder_source"),
        ("--precission=bf16", "did you mean --precision"),
        ("--xyzzy=1", "see the YAML"),
        ("--sap_heads=2", "--sap_heads"),  # of the other stage
    ],
)
def test_a_key_that_nothing_reads_is_refused_with_a_hint(yaml_of, option, hint):
    with pytest.raises(RecipeError, match="unknown key") as error:
        parse_arguments([yaml_of(), "--fold=2", option])
    assert option.partition("=")[0] in str(error.value)
    assert hint in str(error.value)


def test_run_options_pass_beside_the_yamls_keys(yaml_of):
    _, run_opts, overrides = parse_arguments(
        [
            yaml_of(),
            "--device=cpu",
            "--fold=2",
            "--precision",
            "bf16",
            "--max_grad_norm=1.5",
            "--debug",
        ]
    )
    assert overrides == {"fold": 2}
    assert run_opts["device"] == "cpu"
    assert run_opts["precision"] == "bf16"
    assert run_opts["max_grad_norm"] == 1.5
    assert run_opts["debug"] is True
    assert parse_arguments([yaml_of()])[1]["debug"] is False


def test_a_missing_yaml_is_named(yaml_of):
    with pytest.raises(RecipeError, match="nowhere.yaml cannot be read"):
        parse_arguments(["nowhere.yaml", "--fold=1"])
    with pytest.raises(RecipeError, match="no hyperparameter file"):
        parse_arguments(["--fold=1"])


def test_options_are_split_at_the_first_equals_sign():
    positional, options = split_options(
        ["a.yaml", "--x=1=2", "--y", "3 = 4", "--flag", "--z="]
    )
    assert positional == ["a.yaml"]
    assert options == [("x", "1=2"), ("y", "3 = 4"), ("flag", None), ("z", "")]


def test_a_users_mistake_is_one_sentence_without_traceback(capsys):
    def main(arguments):
        raise RecipeError("fold 7 does not exist.")

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == "error: fold 7 does not exist."


# The YAML --------------------------------------------------------------------


@pytest.mark.parametrize("recipe, stage", ALL_YAMLS)
def test_every_key_of_the_yaml_is_used(repository, yaml_of, recipe, stage):
    folder = repository / "recipes" / "IEMOCAP" / "wap_adapter"
    script = (folder / f"train_{stage}.py").read_text("utf-8")
    with open(yaml_of(recipe, stage), encoding="utf-8") as file:
        text = re.sub(r"(^|\s)#.*", "", file.read())
    keys = [key for key in YAML().load(text) if not key.startswith("__")]
    assert keys == read_keys(yaml_of(recipe, stage))
    run_options = set(RunOptions().keys())
    unused = [
        key
        for key in keys
        if not (
            re.search(rf'hparams\["{key}"\]', script)
            or re.search(rf"\b(hparams|modules)\.{key}\b", script)
            or f"<{key}>" in text
            or key in run_options
        )
    ]
    assert unused == []


@pytest.mark.parametrize("stage, expected_key", zip(STAGES, NEEDED_IN_TRAINING))
def test_keys_that_are_read_in_training_are_asked_for_before(
    repository, settings_of, yaml_of, stage, expected_key
):
    """Else an own YAML that lacks one would fail once features are there."""
    read = set()
    for file in (
        repository
        / "recipes"
        / "IEMOCAP"
        / "wap_adapter"
        / f"train_{stage}.py",
        repository / "speechbrain_wap" / "brain.py",
    ):
        text = file.read_text("utf-8")
        read |= set(re.findall(r"\bhparams\.([a-z_]+)\b", text))
    assert read <= {*NEEDED, *NEEDED_IN_TRAINING[expected_key]}
    settings = settings_of(yaml_of(stage=stage))
    check_values(settings, expected_key, "a.yaml")
    for key in NEEDED_IN_TRAINING[expected_key]:
        lacking = {k: v for k, v in settings.items() if k != key}
        with pytest.raises(RecipeError, match=f"(lacks|has no) .*{key}"):
            check_values(lacking, expected_key, "a.yaml")


def test_the_ema_decay_does_not_fall(settings_of, yaml_of):
    settings = settings_of(yaml_of("EmoDB"))
    with pytest.raises(RecipeError, match="ema_decay_start .0.99. must not be"):
        check_values({**settings, "ema_decay": 0.9}, "mask_ratio", "a.yaml")


@pytest.mark.parametrize("stage", STAGES)
def test_all_corpora_have_the_same_keys(yaml_of, stage):
    keys = [read_keys(yaml_of(recipe, stage)) for recipe in RECIPES]
    assert keys.count(keys[0]) == len(RECIPES)


@pytest.mark.parametrize("recipe, stage", ALL_YAMLS)
def test_the_interfaces_keys_are_there(yaml_of, recipe, stage):
    common = """data_folder output_folder skip_prep train_annotation
        valid_annotation test_annotation seed fold protocol encoder_source
        encoder_layer encoder d_model num_layers nhead d_ffn
        number_of_epochs batch_size lr"""
    own = {
        "adapter": """mask_ratio ema_decay num_attributes rec_weight_start
            rec_weight_end adapter_data""",
        "classifier": "sap_heads adapter_folder adapter_branch classes",
    }
    wanted = {*common.split(), *own[stage].split()}
    assert wanted <= set(read_keys(yaml_of(recipe, stage)))


@pytest.mark.parametrize("recipe, stage", ALL_YAMLS)
def test_the_yaml_is_loaded_with_the_users_values(yaml_of, recipe, stage):
    options = [f"--{key}={value}" for key, value in SMALL.items()]
    file, _, overrides = parse_arguments(
        [yaml_of(recipe, stage), "--data_folder=D", "--lr=0.25", *options]
    )
    hparams, *_ = load(file, overrides)
    assert hparams["data_folder"] == "D"
    assert hparams["encoder_dim"] == 80
    network = hparams["student" if "adapter" in stage else "adapter"]
    assert network.projection.out_features == 8
    optimizer = hparams["opt_class"](network.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.25
    prepare = hparams["corpus"]["prepare_corpus"]
    assert prepare.__name__ == f"prepare_{recipe.lower()}"


@pytest.mark.parametrize("recipe, stage", ALL_YAMLS)
def test_no_corpus_is_one_sentence_with_both_ways_to_give_one(
    yaml_of, recipe, stage
):
    with pytest.raises(RecipeError, match="--data_folder.*--corpus_csv"):
        load(yaml_of(recipe, stage), {"encoder_source": "fbank"})


def test_an_own_corpus_needs_no_data_folder(yaml_of):
    options = [f"--{key}={value}" for key, value in SMALL.items()]
    file, _, overrides = parse_arguments(
        [yaml_of(), "--corpus_csv=own.csv", *options]
    )
    hparams, *_ = load(file, overrides)
    assert hparams["corpus_csv"] == "own.csv"
    assert not hparams["data_folder"]


@pytest.mark.parametrize(
    "text, value",
    [
        ("a.csv,b c.csv", "a.csv,b c.csv"),
        ("2024", "2024"),
        ("[a.csv, {table: b.csv}]", ["a.csv", {"table": "b.csv"}]),
        ("{table: b.csv, weight: 2}", [{"table": "b.csv", "weight": 2}]),
        ("null", None),
        ("", None),
    ],
)
def test_further_corpora_may_be_given_in_two_ways(yaml_of, text, value):
    _, _, overrides = parse_arguments([yaml_of(), f"--corpora={text}"])
    assert overrides == {"corpora": value}


def test_further_corpora_reach_the_script_as_they_were_given(yaml_of):
    value = ["a.csv", {"table": "b.csv", "weight": 2}]
    overrides = {"corpora": value, "data_folder": "D", **SMALL}
    hparams, _, settings = load(yaml_of(), overrides)
    assert hparams["corpora"] == value and settings["fold"] == 1
    assert settings["corpora"] == [
        {"name": "a", "weight": 1.0},
        {"name": "b", "weight": 2.0},
    ]


def test_further_corpora_of_the_yaml_are_read_too(yaml_of, tmp_path):
    text = Path(yaml_of()).read_text("utf-8")
    text = text.replace("\ncorpora: null", "\ncorpora: [{table: a.csv}]")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text, "utf-8")
    settings = read_settings(mine, {})
    assert settings["corpora"] == [{"name": "a", "weight": 1.0}]
    assert read_corpora(mine, {})[0]["table"] == "a.csv"
    assert read_corpora(mine, {"corpora": None}) == []


def test_without_a_corpus_under_test_there_are_no_folds(yaml_of):
    alone = {"corpora": "a.csv", **SMALL}
    hparams, overrides, settings = load(yaml_of(), dict(alone))
    assert settings["fold"] is None and not hparams["data_folder"]
    assert "/no_fold-seed1993-" in overrides["output_folder"]
    for key, value in (("fold", 2), ("protocol", "held_out")):
        with pytest.raises(RecipeError, match=f"{key}={value} means nothing"):
            load(yaml_of(), {**alone, key: value})
    folders = {
        load(yaml_of(), {**alone, **more})[1]["output_folder"]
        for more in (
            {},
            {"corpora": "x/a.csv"},
            {"data_folder": "D"},
            {"corpus_csv": "own.csv", "data_folder": ""},
        )
    }
    assert len(folders) == 4


@pytest.mark.parametrize("place", ["a.csv", "elsewhere/a.csv"])
def test_where_further_tables_lie_and_whose_names_they_have_may_change(
    yaml_of, settings_of, tmp_path, place
):
    record_settings(tmp_path, settings_of(yaml_of(), corpora="a.csv"))
    item = {"table": place, "speakers": "own"}
    record_settings(tmp_path, settings_of(yaml_of(), corpora=[item]))


def test_a_mapping_on_the_command_line_replaces_the_yamls(yaml_of):
    yaml = yaml_of(stage="classifier")
    _, _, overrides = parse_arguments(
        [yaml, "--classes={low: [sad, neu], high: [ang]}", "--data_folder=D"]
    )
    assert overrides["classes"] == {"low": ["sad", "neu"], "high": ["ang"]}
    hparams, *_ = load(yaml, {**overrides, **SMALL})
    for classes in (
        read_settings(yaml, overrides)["classes"],
        hparams["classes"],
    ):
        left = {k: list(v) for k, v in classes.items() if v is not None}
        assert left == {"low": ["sad", "neu"], "high": ["ang"]}


def test_text_on_the_command_line_replaces_the_yamls_mapping(yaml_of):
    yaml = yaml_of(stage="classifier")
    _, _, overrides = parse_arguments([yaml, "--classes=all"])
    assert read_settings(yaml, overrides)["classes"] == "all"


# The output folder -----------------------------------------------------------


def name_folder(yaml, corpus="D", **overrides):
    return default_output_folder(read_settings(yaml, overrides), "R", corpus)


CHANGES = {
    "adapter": [
        {},
        {"fold": 2},
        {"seed": 7},
        {"encoder_source": "fbank"},
        {"encoder_source": "/other/hubert-large-ll60k"},
        {"encoder_layer": 3},
        {"lr": 0.5},
        {"number_of_epochs": 7},
        {"adapter_data": "all"},
        {"revive_after": None},
        {"corpora": "a.csv"},
        {"corpora": [{"table": "a.csv", "weight": 2}]},
        {"corpus": "E"},
    ],
    "classifier": [
        {},
        {"classes": {"a": ["ang"], "b": ["sad"]}},
        {"classes": {"a": ["ang"], "c": ["sad"]}},
        {"classes": "all"},
        {"dialogue_style": "all"},
        {"adapter_folder": "A"},
        {"adapter_folder": "B"},
    ],
}


@pytest.mark.parametrize("stage", STAGES)
def test_runs_with_other_settings_never_share_a_folder(yaml_of, stage):
    yaml = yaml_of(stage=stage)
    folders = [name_folder(yaml, **change) for change in CHANGES[stage]]
    assert len(set(folders)) == len(folders)
    assert name_folder(yaml) == folders[0]


def test_a_folders_name_tells_encoder_layer_fold_and_seed(yaml_of):
    folder = name_folder(
        yaml_of(), encoder_source="/x/whisper/", encoder_layer=3, fold=2, seed=7
    )
    assert re.fullmatch(r"R/whisper-layer_3/fold2-seed7-[0-9a-f]{8}", folder)


def test_places_do_not_change_the_folders_name(yaml_of):
    """Data and own corpus enter by the argument only."""
    yaml = yaml_of()
    assert name_folder(yaml) == name_folder(yaml, cache_folder="C")
    assert name_folder(yaml) == name_folder(yaml, data_folder="E")


def test_the_folder_lies_where_the_yaml_says_or_where_the_user_says(yaml_of):
    chosen = {"data_folder": "D", **SMALL}
    hparams, overrides, _ = load(yaml_of(), dict(chosen))
    folder = overrides["output_folder"]
    assert folder.startswith("results/adapter/fbank-layer_last/fold1-seed1993-")
    assert hparams["save_folder"] == f"{folder}/save"
    hparams, overrides, _ = load(yaml_of(), {**chosen, "output_folder": "mine"})
    assert hparams["output_folder"] == overrides["output_folder"] == "mine"


# The settings guard ----------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_resumes_with_the_same_settings(yaml_of, tmp_path, stage):
    yaml = yaml_of(stage=stage)
    for _ in range(2):
        record_settings(tmp_path / "save", read_settings(yaml, {}))
    recorded = json.loads((tmp_path / "save" / "settings.json").read_text())
    assert recorded["settings"]["seed"] == 1993


@pytest.mark.parametrize(
    "stage, key, value",
    [
        ("adapter", "fold", 2),
        ("adapter", "seed", 7),
        ("adapter", "encoder_layer", 3),
        ("adapter", "lr", 0.5),
        ("adapter", "d_model", 192),
        ("adapter", "revive_after", None),
        ("adapter", "adapter_data", "all"),
        ("adapter", "corpora", "a.csv,b.csv"),
        ("adapter", "corpora", [{"table": "a.csv", "weight": 2}]),
        ("adapter", "corpus_weight", 0.5),
        ("classifier", "classes", "all"),
        ("classifier", "classes", {"a": ["ang"], "b": ["sad"]}),
        ("classifier", "adapter_branch", "student"),
        ("classifier", "sap_heads", 2),
        ("classifier", "label_fraction", 0.5),
    ],
)
def test_other_settings_are_refused_by_the_keys_name(
    yaml_of, settings_of, tmp_path, stage, key, value
):
    yaml = yaml_of(stage=stage)
    record_settings(tmp_path, settings_of(yaml))
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(RecipeError, match=f" {key}=.*output_folder") as error:
        record_settings(tmp_path, settings_of(yaml, **{key: value}))
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "settings.json").read_text() == before


@pytest.mark.parametrize("key", ["encoder_key", "data", "class_names"])
def test_what_the_script_adds_to_the_settings_is_guarded_too(
    yaml_of, settings_of, tmp_path, key
):
    settings = settings_of(yaml_of(stage="classifier"))
    record_settings(tmp_path, {**settings, key: "1234"})
    with pytest.raises(
        RecipeError, match=f"another value of {LABELS[key][:11]}"
    ):
        record_settings(tmp_path, {**settings, key: "5678"})


@pytest.mark.parametrize("recipe, stage", ALL_YAMLS)
def test_the_number_of_epochs_may_grow_but_not_shrink(
    yaml_of, tmp_path, recipe, stage
):
    yaml = yaml_of(recipe, stage)

    def record(epochs):
        settings = read_settings(yaml, {"number_of_epochs": epochs})
        record_settings(tmp_path, settings)

    record(3)
    record(5)
    with pytest.raises(RecipeError, match="number_of_epochs=5.* shrink to 4"):
        record(4)
    record(5)


@pytest.mark.parametrize(
    "stage, key, value",
    [
        ("adapter", "num_workers", 2),
        ("adapter", "ckpt_interval_minutes", 1),
        ("adapter", "skip_prep", True),
        ("adapter", "max_skipped", 0.5),
        ("adapter", "data_folder", "D"),
        ("adapter", "corpus_csv", "own.csv"),
        ("adapter", "cache_folder", "C"),
        ("adapter", "output_folder", "O"),
        ("adapter", "encoder_source", "/elsewhere/hubert"),
        ("classifier", "num_workers", 2),
        ("classifier", "encoder_source", "/elsewhere/hubert"),
        ("classifier", "adapter_folder", "A"),
    ],
)
def test_where_things_lie_and_how_a_run_is_watched_may_change(
    yaml_of, settings_of, tmp_path, stage, key, value
):
    for overrides in ({}, {key: value}):
        settings = settings_of(yaml_of(stage=stage), **overrides)
        settings["encoder_key"] = "0123456789abcdef"  # as the scripts do
        record_settings(tmp_path, settings)


# The cross-validation's command line -----------------------------------------


@pytest.fixture(scope="module")
def cross_validate(import_script):
    path = list(sys.path)
    yield import_script("recipes/IEMOCAP/wap_adapter/cross_validate.py")
    sys.path[:] = path


@pytest.fixture
def route(cross_validate, yaml_of):
    """Routes options to the stages of the IEMOCAP recipe."""
    stages = {stage: read_keys(yaml_of(stage=stage)) for stage in STAGES}

    def run(*arguments):
        _, options = split_options(list(arguments))
        return cross_validate.route_options(options, stages)

    return run


@pytest.mark.parametrize(
    "option, adapter, classifier",
    [
        ("--mask_ratio=0.2", True, False),
        ("--sap_heads=2", False, True),
        ("--classes={a: [x], b: [y=z]}", False, True),
        ("--d_model=8", True, True),
        ("--data_folder=/a b/c=d #1", True, True),
        ("--device=cpu", True, True),
        ("--debug", True, True),
    ],
)
def test_an_option_goes_to_the_stages_that_have_it(
    route, option, adapter, classifier
):
    own, routed = route(option)
    assert own == {}
    assert routed == {
        "adapter": [option] * adapter,
        "classifier": [option] * classifier,
    }


@pytest.mark.parametrize(
    "option, stage, argument",
    [
        ("--adapter.lr=0.1", "adapter", "--lr=0.1"),
        ("--classifier.lr=0.1", "classifier", "--lr=0.1"),
        (
            "--adapter.encoder_source=adapter.x",
            "adapter",
            "--encoder_source=adapter.x",
        ),
        ("--classifier.debug", "classifier", "--debug"),
        ("--adapter.precision=bf16", "adapter", "--precision=bf16"),
    ],
)
def test_a_prefix_sends_an_option_to_one_stage(route, option, stage, argument):
    _, routed = route(option)
    expected = {"adapter": [], "classifier": [], stage: [argument]}
    assert routed == expected


def test_options_keep_their_order_so_that_the_last_one_counts(route):
    _, routed = route("--lr=1", "--adapter.lr=2", "--lr=3")
    assert routed["adapter"] == ["--lr=1", "--lr=2", "--lr=3"]
    assert routed["classifier"] == ["--lr=1", "--lr=3"]


def test_its_own_options_are_kept_from_the_stages(route):
    own, routed = route(
        "--folds=1,2",
        "--seeds",
        "1,2",
        "--adapter_training=False",
        "--output_folder=my results=1",
    )
    assert own == {
        "folds": "1,2",
        "seeds": "1,2",
        "adapter_training": "False",
        "output_folder": "my results=1",
    }
    assert routed == {"adapter": [], "classifier": []}


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--mask_ration=0.2", "did you mean --mask_ratio"),
        ("--fold=1", "use --folds"),
        ("--adapter.num_layer=2", "did you mean --adapter.num_layers"),
        ("--adapter.sap_heads=2", "--adapter.sap_heads"),
        ("--classifier.mask_ratio=0.2", "--classifier.mask_ratio"),
        ("--encoder.lr=1", "--encoder.lr"),
        ("--adapter.=1", "--adapter."),
        ("--adapter.folds=1", "--adapter.folds"),
        ("--xyzzy", "--xyzzy"),
    ],
)
def test_an_option_that_no_stage_has_is_refused(route, option, hint):
    with pytest.raises(RecipeError) as error:
        route("--lr=1", option)
    assert option.partition("=")[0] in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize("prefix", ["", "adapter.", "classifier."])
def test_what_the_script_sets_for_each_run_cannot_be_set(route, prefix):
    for key in ("fold", "seed", "adapter_folder", "skip_prep"):
        if key == "adapter_folder" and not prefix:
            continue  # one for all folds
        with pytest.raises(RecipeError, match=f"--{prefix}{key} cannot be set"):
            route(f"--{prefix}{key}=1")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_output_folder_is_refused_since_it_would_be_ignored(
    route, stage
):
    with pytest.raises(RecipeError, match=f"--{stage}.output_folder"):
        route(f"--{stage}.output_folder=O")


@pytest.mark.parametrize("option", ["--folds", "--output_folder"])
def test_its_own_options_need_a_value(route, option):
    with pytest.raises(RecipeError, match=f"{option} needs a value"):
        route(option)


@pytest.mark.parametrize(
    "text, numbers", [("1,2,3", [1, 2, 3]), ("[3, 1, 3]", [3, 1]), ("5", [5])]
)
def test_folds_and_seeds_are_whole_numbers_once_each(
    cross_validate, text, numbers
):
    assert cross_validate.parse_list(text, "folds") == numbers
    for wrong in ("a", "1;2", "1.5", ""):
        with pytest.raises(RecipeError, match="--folds=.*whole numbers"):
            cross_validate.parse_list(wrong, "folds")


@pytest.fixture
def parse_command(cross_validate, yaml_of):
    files = [yaml_of(stage=stage) for stage in STAGES]

    def parse(*options):
        return cross_validate.parse_command([*files, *options])

    return parse


def test_the_commands_defaults_are_all_folds_and_the_yamls_seed(parse_command):
    command = parse_command("--data_folder=D")
    assert command["folds"] is None
    assert command["seeds"] == [1993]
    assert command["adapter_training"] is True
    overrides = [command["stages"][stage]["overrides"] for stage in STAGES]
    assert overrides == [{"data_folder": "D"}] * 2


def test_the_commands_folder_differs_by_what_is_run(parse_command):
    options = [
        [],
        ["--adapter_training=False"],
        ["--adapter.lr=0.5"],
        ["--classifier.lr=0.5"],
        ["--encoder_layer=3"],
        ["--data_folder=E"],
        ["--corpus_csv=own.csv"],
        ["--corpora=a.csv"],
        ["--corpora=x/a.csv"],
        ["--corpora=[{table: a.csv, speakers: own}]"],
        ["--corpora=[{table: a.csv, weight: 2}]"],
        ["--adapter_folder=A"],
        ["--adapter_folder=B"],
    ]
    folders = [
        parse_command("--data_folder=D", *more)["output_folder"]
        for more in options
    ]
    assert len(set(folders)) == len(folders)
    command = parse_command("--data_folder=D", "--output_folder=O")
    assert command["output_folder"] == "O"


def test_folds_and_seeds_share_the_commands_folder(parse_command):
    folder = parse_command("--data_folder=D")["output_folder"]
    for option in ("--folds=2", "--seeds=1,2"):
        command = parse_command("--data_folder=D", option)
        assert command["output_folder"] == folder


def test_adapter_training_is_true_or_false(parse_command):
    for text in ("False", "false"):
        command = parse_command(f"--adapter_training={text}")
        assert command["adapter_training"] is False
    with pytest.raises(RecipeError, match="adapter_training=maybe"):
        parse_command("--adapter_training=maybe")


def test_an_earlier_adapter_leaves_stage_1_out(parse_command):
    command = parse_command("--data_folder=D", "--adapter_folder=A")
    assert command["adapter_folder"] == "A"
    assert command["adapter_training"] is False
    for option in (
        "--adapter_training=True",
        "--adapter_training=False",
        "--corpora=a.csv",
        "--mask_ratio=0.5",
        "--adapter.lr=0.5",
    ):
        key = option.partition("=")[0]
        with pytest.raises(RecipeError, match=f"{key} has no effect"):
            parse_command("--data_folder=D", "--adapter_folder=A", option)
    with pytest.raises(RecipeError, match="--adapter_folder= is empty"):
        parse_command("--data_folder=D", "--adapter_folder=")


def test_the_command_takes_two_yaml_files(cross_validate, yaml_of):
    with pytest.raises(RecipeError, match="two hyperparameter files"):
        cross_validate.parse_command([yaml_of(), "--folds=1"])
