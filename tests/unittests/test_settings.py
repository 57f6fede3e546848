"""Command line and YAML: nothing is ignored, mixed up or taken for another."""

import re
from pathlib import Path

import pytest
from readings import CORPORA, SMALL, STAGES, copy_yaml, find_yaml, read
from ruamel.yaml import YAML

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.command_line import read_command, split_options
from speechbrain_wap.training.experiment import Experiment, run_script
from speechbrain_wap.training.hparams_file import HparamsFile

pytestmark = pytest.mark.usefixtures("workplace")
SCRIPTS = "recipes/IEMOCAP/wap_adapter"


# The command line ------------------------------------------------------------


def test_options_are_split_at_the_first_equals_sign():
    positional, options = split_options(
        ["a.yaml", "--x=1=2", "--y", "3 = 4", "--debug", "b.yaml", "--z="]
    )
    assert positional == ["a.yaml", "b.yaml"]  # a flag takes no value
    assert options == [("x", "1=2"), ("y", "3 = 4"), ("debug", None), ("z", "")]


TEXTS = {
    "output_folder": "results/lr=0.1: {x} 'y', *z #2",
    "save_folder": "2024",
    "cache_folder": "[1]",
    "train_log": "1e3",
    "train_annotation": "yes",
    "valid_annotation": "a: b",
    "test_annotation": "null x",
    "encoder_source": "fbank",
}


def test_folders_files_and_the_encoder_are_the_text_that_was_typed():
    options = [part for key in TEXTS for part in (f"--{key}", TEXTS[key])]
    reading = read("adapter", *SMALL, *options)
    assert TEXTS.items() <= reading.command.overrides.items()
    assert TEXTS.items() <= reading.settings.items()
    assert TEXTS.items() <= reading.build().items()
    options = ["--encoder_source=x", "--encoder_source=2024"]
    reading = read("adapter", *options, "--corpus_csv=[a: {b")
    assert reading.settings["encoder_source"] == "2024"  # the last one counts
    assert reading.data == "[a: {b"


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("fold", "2", 2),
        ("mask_ratio", ".5", 0.5),
        ("lr", "1e-4", 1e-4),
        ("revive_after", "null", None),
        ("mlp_residual", "True", True),
        ("skip_prep", "false", False),
        ("encoder_layer", "last", "last"),
        ("encoder_layer", "[1, 2]", [1, 2]),
        ("corpora", "2024", "2024"),
        ("corpora", "[a.csv, {table: 1.csv}]", ["a.csv", {"table": "1.csv"}]),
        *(("corpus_csv", text, None) for text in ("", "null", "None")),
    ],
)
def test_other_values_are_what_the_yaml_would_read(key, text, value):
    for arguments in ([f"--{key}={text}"], [f"--{key}", text]):
        overrides = read_command([find_yaml(), *arguments]).overrides
        assert overrides == {key: value}
        assert type(overrides[key]) is type(value)
    settings = read("adapter", f"--{key}={text}").settings
    if key not in ("corpora", "corpus_csv"):
        assert settings[key] == value and type(settings[key]) is type(value)
        assert YAML(typ="safe").load(f"a: {text}")["a"] == value


def test_run_options_pass_beside_the_yamls_keys():
    command = read_command(
        [
            *(find_yaml(), "--device=cpu", "--fold=2", "--precision", "bf16"),
            *("--max_grad_norm=1.5", "--debug", "--ckpt_interval_steps=3"),
        ]
    )
    # one way to save within an epoch or the other
    assert command.overrides == {"fold": 2, "ckpt_interval_minutes": 0}
    options = command.run_opts
    assert (options["device"], options["precision"]) == ("cpu", "bf16")
    assert (options["max_grad_norm"], options["debug"]) == (1.5, True)
    assert read_command([find_yaml()]).run_opts["debug"] is False


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "no hyperparameter file given"),
        (["nowhere.yaml", "--fold=1"], "file nowhere.yaml cannot be read"),
        (["list.yaml"], "list.yaml is no YAML file of keys"),
        (["HERE", "more"], "more is neither an option nor the value of one"),
        (["HERE", "--fold"], "--fold needs a value"),
        (["HERE", "--fold={1: ["], "--fold=.* cannot be read as a YAML value"),
        (
            ["HERE", "--num_layer=2"],
            "key --num_layer: did you mean --num_layers",
        ),
        (["HERE", "--sap_heads=2"], "unknown key --sap_heads"),  # stage 2's
        (["HERE", "--jit"], "--jit has no effect here: .* --compile can"),
        (["HERE", "--device=cuda:99"], "--device=cuda:99 cannot be used"),
        (["HERE", "--device=cpu", "--precision=fp16"], "fp16 needs a GPU"),
        (["HERE", "--grad_accumulation_factor=0"], "=0 must be at least 1"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(
    workplace, arguments, sentence
):
    (workplace / "list.yaml").write_text("[1, 2]")
    arguments = [find_yaml() if x == "HERE" else x for x in arguments]
    with pytest.raises(RecipeError, match=sentence):
        read_command(arguments)


def test_help_is_what_stands_at_the_top_of_the_script(
    import_script, monkeypatch, capsys
):
    script = import_script(f"{SCRIPTS}/train_adapter.py")
    monkeypatch.setattr("sys.argv", ["train_adapter.py", "--help"])
    run_script(script.main)
    said = capsys.readouterr().out
    assert script.__doc__ in said and "--precision" in said


# Values and their places -----------------------------------------------------


def test_a_mapping_takes_the_place_of_the_yamls_or_joins_its_arguments():
    text, expected = "{low: [sad, neu]}", {"low": ["sad", "neu"]}
    reading = read("classifier", *SMALL, f"--classes={text}")
    assert reading.settings["classes"] == expected
    assert reading.build()["classes"] == expected
    # of what is wired
    reading = read("adapter", *SMALL, "--student={dropout: 0.25}")
    student = reading.build()["student"]
    assert student.dropout.p == 0.25
    assert student.d_model == 8  # as it was
    expected = {"student": "WAPTransformer", "student.dropout": 0.25}
    assert expected.items() <= reading.settings.items()


def test_another_system_takes_the_place_of_the_first_with_its_keys(workplace):
    name = "own/mine.yaml"
    yaml = copy_yaml(workplace, "classifier")
    linear = (yaml.parent / "models" / "linear.yaml").read_text("utf-8")
    (yaml.parent / "own").mkdir()
    (yaml.parent / "own" / "mine.yaml").write_text(linear, "utf-8")
    reading = read(yaml, *SMALL[:2], f"--system={name}")
    assert type(reading.build()["model"]).__name__ == "MeanPoolingClassifier"
    assert reading.settings["system"] == Path(name).stem
    assert reading.settings["system.model"] == "MeanPoolingClassifier"
    assert not {"sap_heads", "d_model"} & reading.settings.keys()
    with pytest.raises(RecipeError, match="unknown key --sap_heads"):
        read(yaml, f"--system={name}", "--sap_heads=2")
    # what the file that includes it says of its keys counts
    model = read("classifier", *SMALL, "--max_frames=77").build()["model"]
    assert model.backbone.max_frames == 77
    with pytest.raises(RecipeError, match="models/lineal.yaml cannot be read"):
        read("classifier", "--system=lineal")


# The corpora -----------------------------------------------------------------


def test_further_corpora_of_command_line_and_yaml_are_read_alike(workplace):
    item = "[a.csv, {table: b.csv, weight: 2, speakers: own}]"
    yaml = copy_yaml(
        workplace, "adapter", ("\ncorpora: null", f"\ncorpora: {item}")
    )
    readings = [read(yaml), read("adapter", f"--corpora={item}")]
    for reading in readings:
        assert [c["table"] for c in reading.corpora] == ["a.csv", "b.csv"]
        assert reading.corpora[1]["speakers"] == "own"
        # what a run learns does not depend on where they lie
        assert reading.settings["corpora"] == [
            {"name": "a", "weight": 1.0},
            {"name": "b", "weight": 2.0},
        ]
    assert read(yaml, "--corpora=null").corpora == []
    assert read("classifier").corpora == []


def test_without_a_corpus_under_test_there_are_no_folds():
    reading = read("adapter", *SMALL[1:], "--corpora=a.csv")
    assert reading.settings["fold"] is None and reading.data == ""
    assert reading.build()["data_folder"] == ""
    for option in ("fold=2", "protocol=held_out", "adapter_data=all"):
        with pytest.raises(RecipeError, match=f"{option} means nothing"):
            read("adapter", "--corpora=a.csv", f"--{option}")
        read("adapter", "--corpora=a.csv", f"--{option}", "--data_folder=D")


def test_no_corpus_is_one_sentence_with_both_ways_to_give_one():
    with pytest.raises(RecipeError, match="--data_folder.*--corpus_csv"):
        read("classifier").check_corpus()
    for option in ("--data_folder=D", "--corpus_csv=own.csv"):
        reading = read("classifier", option)
        reading.check_corpus()
        assert reading.data == option.partition("=")[2]


PATHS = """data_folder corpus_csv output_folder save_folder cache_folder
    train_log train_annotation valid_annotation test_annotation
    encoder_source"""


@pytest.mark.parametrize("stage", STAGES)
def test_home_and_variables_are_resolved_in_every_path(
    workplace, monkeypatch, stage
):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("RUNS", "/runs")
    keys = PATHS.split() + ["adapter_folder"] * (stage == "classifier")
    for key in keys:
        options = [f"--{key}=~/x", "--data_folder=D"][: 1 + (key[:4] != "data")]
        reading = read(stage, *options)
        assert reading.settings[key] == "/home/ada/x", key
        with pytest.raises(RecipeError, match=f"^{key}=.*variable .NOWHERE"):
            read(stage, *options, f"--{key}=$NOWHERE/x")
    # what refers to a path follows it, and so does what is wired
    reading = read(stage, *SMALL, "--output_folder=$RUNS/x")
    assert reading.settings["save_folder"] == "/runs/x/save"
    assert "checkpoints_dir: /runs/x/save" in reading.text
    reading.set_output_folder("/runs/y")
    assert "save_file: /runs/y/train_log.txt" in reading.text
    # in the YAML: a key of the user's own, and arguments of what is wired
    yaml = copy_yaml(
        workplace,
        stage,
        ("data_folder: !PLACEHOLDER", "c: ~/c\ndata_folder: !ref <c>/d #"),
        ("checkpoints_dir: !ref <save_folder>", "checkpoints_dir: ~/save"),
    )
    reading = read(yaml)
    assert reading.data == "/home/ada/c/d"
    assert "checkpoints_dir: /home/ada/save" in reading.text
    # a hub id is none, and relative paths stay so
    reading = read(stage, "--corpus_csv=a.csv", "--encoder_source=a/b")
    assert reading.data == "a.csv"
    assert reading.settings["encoder_source"] == "a/b"


def test_home_is_resolved_in_further_corpora(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    for value in ("a.csv,~/b.csv", "[a.csv, {table: $HOME/b.csv}]"):
        corpora = read("adapter", f"--corpora={value}").corpora
        tables = [item["table"] for item in corpora]
        assert tables == ["a.csv", "/home/ada/b.csv"]


# The recipes' files ----------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_all_corpora_have_the_interfaces_keys(stage):
    keys = [HparamsFile(find_yaml(stage, corpus)).keys() for corpus in CORPORA]
    assert keys.count(keys[0]) == len(CORPORA)
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
    assert wanted <= set(keys[0])


@pytest.mark.parametrize("stage", STAGES)
def test_what_training_reads_is_asked_for_before_it(
    repository, import_script, workplace, stage
):
    """Else an own YAML that lacks a key would fail once features are there."""
    needed = import_script(f"{SCRIPTS}/train_{stage}.py").NEEDED
    files = [f"{SCRIPTS}/train_{stage}.py", "speechbrain_wap/training/brain.py"]
    read_in_training = {
        key
        for file in files
        for key in re.findall(
            r"\bself\.hparams\.([a-z_]+)",
            (repository / file).read_text("utf-8"),
        )
    }
    assert read_in_training <= set(needed)
    reading = read(stage, *SMALL)
    for key in needed:
        kept = reading.file.tree.pop(key)
        with pytest.raises(RecipeError, match=f"(lacks the|has no) key {key}"):
            reading.check_stage(needed)
        reading.file.tree[key] = kept
    reading.check_stage(needed)
    other = read_command([find_yaml(STAGES[stage == STAGES[0]]), *SMALL])
    with pytest.raises(RecipeError, match="is not for this script: it has"):
        Experiment(other, needed)


def test_a_key_that_the_yaml_lacks_is_named_wherever_it_is_read(workplace):
    line = "\nlong_utterances: error"
    yaml = copy_yaml(workplace, "adapter", (line, "\nmine: error"))
    hparams = read(yaml, *SMALL).build()
    with pytest.raises(RecipeError, match=f"{yaml} lacks the key long_utter"):
        hparams["long_utterances"]
    assert hparams["mine"] == "error"


# What cannot be built --------------------------------------------------------


@pytest.mark.parametrize(
    "stage, option, mistake",
    [
        # what the loop reads itself
        ("adapter", "probe_every=-1", "must be a whole .* at least 0, or null"),
        (
            "classifier",
            "label_fraction=0",
            "must be a number above 0 and at most 1",
        ),
        # what a constructor calls by another name, or one within it
        ("classifier", "augment_mask_ratio=2", "must be a number from 0 to 1"),
        ("adapter", "rec_weight_end=x", "must be a number"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_key(
    stage, option, mistake
):
    with pytest.raises(RecipeError, match=f"^{option} {mistake}"):
        read(stage, *SMALL, f"--{option}").build()


ENCODER = "!new:speechbrain_wap.encoders.SpeechEncoder"


@pytest.mark.parametrize(
    "option, encoder, sentence",
    [
        (
            "student={dropuot: 0.5}",
            ENCODER,
            r"student \(WAPTransformer\): .* unexpected keyword .*dropuot",
        ),
        # an optimiser, too, which is made once features are there
        (
            "opt_class={lr: -0.1}",
            ENCODER,
            r" opt_class \(Adam.*\): Inv.* -0\.1",
        ),
        # what an own class raises
        ("fold=1", "!new:own.Broken", r"encoder \(Broken\): no such grip\.$"),
        ("fold=1", "!new:nowhere.Fine", r"encoder \(Fine\): .*nowhere"),
    ],
)
def test_what_cannot_be_built_is_named(workplace, option, encoder, sentence):
    (workplace / "own.py").write_text(
        "class Broken:\n"
        "    def __init__(self, **arguments):\n"
        '        raise KeyError("no such\\ngrip")\n'
    )
    yaml = copy_yaml(workplace, "adapter", (ENCODER, encoder))
    with pytest.raises(RecipeError, match=sentence):
        read(yaml, *SMALL, f"--{option}").build()


# Names that are no text ------------------------------------------------------


def test_a_place_that_cannot_be_written_is_said_before_any_work():
    options = ["--encoder_source=fbank", "--d_model=8", "--nhead=2"]
    for key in ("output_folder", "cache_folder", "encoder_source"):
        with pytest.raises(RecipeError, match=r"'Z\\udcfcrich.* rename it"):
            read("classifier", *SMALL, f"--{key}=Z\udcfcrich")
    reading = read("classifier", *options, "--data_folder=Z\udcfcrich")
    assert reading.data == "Z\udcfcrich"
    assert reading.build()["data_folder"] == "Z\udcfcrich"


# Keys that nothing reads -----------------------------------------------------


def test_a_key_that_nothing_reads_is_warned_of(workplace, caplog):
    text = "skip_prep: False"
    mine = """
learning_rate: 5
epochs: 3
my_size: 8
my_part: !new:torch.nn.Linear
    in_features: !ref <my_size>
    out_features: 4
grad_accumulation_factor: 2
label_smooting: 0.1
my_cost: !name:torch.nn.functional.cross_entropy
    label_smoothing: !ref <label_smooting>
__mine: [!ref <my_part> , !ref <my_cost> ]
"""
    given = "    max_frames: !ref <max_frames>\n"
    changes = (text, text + mine), (given, f"{given}    sap_head: 2\n")
    path = copy_yaml(workplace, "classifier", *changes)
    script = Path(find_yaml()).parents[1] / "train_classifier.py"
    for _ in range(2):  # said once
        read(path, *SMALL).warn_of_unread(str(script), ())
    said = [r.getMessage().partition("the key ")[2] for r in caplog.records]
    assert list(filter(None, said)) == [
        "system.sap_head: did you mean sap_heads?",
        "learning_rate: did you mean lr?",
        "epochs: did you mean number_of_epochs?",
    ]


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("stage", STAGES)
def test_all_keys_of_the_recipes_are_read(stage, corpus, caplog):
    script = Path(find_yaml()).parents[1] / f"train_{stage}.py"
    read(stage, *SMALL, corpus=corpus).warn_of_unread(str(script), ())
    assert "nothing reads" not in caplog.text


# Further streams of a system -------------------------------------------------

STREAMS = [
    *("--system=co_attention", "--encoder_source=fbank", "--data_folder=D"),
    *("--lstm_size=2", "--segment_frames=32", "--cnn_channels=[1, 1, 1, 1, 1]"),
    *("--feature_precision=float32", "--cache_folder=C"),
]


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_systems_streams_are_cached_beside_the_encoders(corpus, caplog):
    reading = read("classifier", *STREAMS, corpus=corpus)
    script = Path(find_yaml()).parents[1] / "train_classifier.py"
    reading.warn_of_unread(str(script), ())
    assert "nothing reads" not in caplog.text
    hparams = reading.build()
    caches, usual = hparams["feature_caches"], hparams["feature_cache"]
    assert list(caches) == ["speech", "mfcc", "spectrogram"]
    assert caches["speech"] is usual
    sizes = {"speech": 80}
    for name in ("mfcc", "spectrogram"):
        cache = caches[name]
        assert cache.encoder.source == name
        assert (cache.precision, cache.cache_folder) == ("float32", "C")
        assert cache.num_workers == usual.num_workers
        sizes[name] = cache.encoder.output_size
    for name, stream in hparams["model"].streams.items():
        assert len(stream.input_mean) == sizes.pop(name)
    assert not sizes
    other = "--streams={mfcc: fbank, spectrogram: spectrogram}"
    other = read("classifier", *STREAMS, other, corpus=corpus)
    differ = {k for k, v in reading.settings.items() if other.settings[k] != v}
    assert differ == {"streams", "feature_caches.mfcc.encoder.source"}


NESTED = """
selection: 0.6
lpmn: !include:lpmn.yaml
    selection: !ref <selection>
model: !ref <lpmn[model]>
"""


def test_what_a_systems_yaml_includes_is_a_setting_too(workplace):
    yaml = copy_yaml(workplace, "classifier")
    Path(yaml.parent, "models", "mine.yaml").write_text(NESTED)
    options = ["--data_folder=D", "--system=mine"]
    settings = read(yaml, *options).settings
    assert (settings["system"], settings["selection"]) == ("mine", 0.6)
    plain = {"num_prototypes": 1024, "selection": 0.6, "d_model": 256}
    for key, value in plain.items():
        assert settings[f"lpmn.{key}"] == value


def test_a_system_without_streams_has_the_one_cache():
    hparams = read("classifier", *SMALL).build()
    assert "feature_caches" not in hparams


def test_streams_that_cannot_be_wired_are_named(workplace):
    with pytest.raises(RecipeError, match="streams=mfcc must map names to"):
        read("classifier", *STREAMS, "--streams=mfcc")
    wired = "feature_caches:\n    pitch: !ref <feature_cache>\nmodel:"
    yaml = copy_yaml(workplace, "classifier", ("\nmodel:", f"\n{wired}"))
    with pytest.raises(RecipeError, match="wires no feature_caches itself"):
        read(yaml, *STREAMS)
