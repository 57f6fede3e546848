"""From a corpus to datasets: who may see whom, and what is left out."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from speechbrain_wap.data.datasets import (
    SPLITS,
    describe_data,
    extract_features,
    list_classes,
    make_dataset,
    measure_features,
    prepare_adapter_data,
    prepare_classifier_data,
    read_manifests,
)
from speechbrain_wap.encoders.speech_encoder import SpeechEncoder
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.features.cache import FeatureCache
from speechbrain_wap.teacher import EMATeacher
from speechbrain_wap.training.checkpoints import Checkpointer
from speechbrain_wap.training.run_folders import (
    ENCODER_KEYS,
    MODEL_KEYS,
    check_adapter,
    load_branch,
    write_adapter_record,
)

PROTOCOLS = ["paper", "held_out"]
FOLDS = [1, 2, 3, 4, 5]
CLASSES = {"happy": ["joy"], "angry": ["rage"]}  # "calm" and "" are no class


@pytest.fixture
def own_csv(make_corpus, tmp_path):
    """5 sessions, 2 speakers each, with the labels joy, rage, calm, none."""
    return make_corpus(tmp_path / "corpus")


@pytest.fixture
def corpus(own_csv, tmp_path):
    """Arguments of prepare_table."""

    def refuse(*args, **kwargs):
        raise AssertionError("an own corpus is not prepared by the recipe")

    return {
        "prepare_corpus": refuse,
        "data_folder": "",
        "corpus_csv": str(own_csv),
        "corpus_table": str(tmp_path / "out" / "corpus.csv"),
        "max_skipped": 0.0,
        "cache_folder": str(tmp_path / "cache"),
    }


@pytest.fixture
def manifests(tmp_path):
    return {name: str(tmp_path / "out" / f"{name}.json") for name in SPLITS}


@pytest.fixture
def prepare_adapter(corpus, manifests):
    """Prepares stage 1 and reads the splits back."""

    def prepare(fold=1, protocol="paper", adapter_data="train"):
        prepare_adapter_data(corpus, fold, protocol, adapter_data, manifests)
        return read_manifests(manifests)

    return prepare


@pytest.fixture
def prepare_classifier(corpus, manifests):
    """Prepares stage 2 and reads the splits back."""

    def prepare(fold=1, protocol="paper", classes=CLASSES, explicit=True):
        prepare_classifier_data(
            corpus, fold, protocol, classes, explicit, "improvised", manifests
        )
        return read_manifests(manifests)

    return prepare


def sessions_of(split):
    return {entry["session"] for entry in split.values()}


# Manifests -------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fold", FOLDS)
def test_stage_1_never_sees_the_session_that_stage_2_tests_on(
    prepare_adapter, prepare_classifier, fold, protocol
):
    adapter = prepare_adapter(fold, protocol)
    classifier = prepare_classifier(fold, protocol)
    held_out = {f"s{fold}"}
    assert sessions_of(classifier["test"]) == held_out
    assert not sessions_of(adapter["train"]) & held_out
    assert not sessions_of(adapter["valid"]) & held_out
    assert sessions_of(adapter["train"]) == sessions_of(classifier["train"])
    if protocol == "paper":
        assert adapter["valid"] == {}
        assert classifier["valid"] == classifier["test"]
    else:
        valid = {f"s{fold % 5 + 1}"}
        assert sessions_of(adapter["valid"]) == valid
        assert sessions_of(classifier["valid"]) == valid
        assert not sessions_of(classifier["train"]) & valid


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unlabelled_utterances_are_in_stage_1_and_not_in_stage_2(
    prepare_adapter, prepare_classifier, protocol
):
    adapter = prepare_adapter(2, protocol)["train"]
    classifier = prepare_classifier(2, protocol)["train"]
    assert {e["emo"] for e in adapter.values()} == {"joy", "rage", "calm", ""}
    assert {e["label"] for e in classifier.values()} == {"happy", "angry"}
    assert {e["emo"] for e in classifier.values()} == {"joy", "rage"}
    assert len(adapter) == 2 * len(classifier)
    assert not any("label" in entry for entry in adapter.values())
    assert classifier.keys() < adapter.keys()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_data_are_for_training_where_that_is_asked_for(
    prepare_adapter, protocol, caplog
):
    splits = prepare_adapter(3, protocol, adapter_data="all")
    assert sessions_of(splits["train"]) == {f"s{i}" for i in FOLDS}
    assert len(splits["train"]) == 40
    assert splits["valid"] == splits["test"] == {}
    assert "held-out session" in caplog.text
    # labels are those of the training sessions only, whoever reads them
    kept = {"s1", "s2", "s5"} | ({"s4"} if protocol == "paper" else set())
    for entry in splits["train"].values():
        number = int(entry["wav"].rpartition("/")[2][-5])
        label = ("joy", "rage", "calm", "")[number]
        assert entry["emo"] == (label if entry["session"] in kept else "")


def test_another_reading_of_adapter_data_is_refused(prepare_adapter):
    with pytest.raises(RecipeError, match="adapter_data=some.*train or all"):
        prepare_adapter(adapter_data="some")


def test_the_recipes_corpus_is_prepared_where_no_own_one_is_given(
    corpus, manifests, own_csv
):
    calls = []

    def prepare_corpus(data_folder, corpus_table, **kept):
        from speechbrain_wap.data.corpus_table import (
            read_own_corpus,
            write_corpus_table,
        )

        calls.append((data_folder, corpus_table, sorted(kept)))
        return write_corpus_table(
            read_own_corpus(own_csv), corpus_table, **kept
        )

    corpus.update(
        prepare_corpus=prepare_corpus, data_folder="D", corpus_csv=None
    )
    prepare_adapter_data(corpus, 1, "paper", "train", manifests)
    table = corpus["corpus_table"]
    assert calls == [("D", table, ["audio_index", "max_skipped"])]
    assert len(read_manifests(manifests)["train"]) == 32


def test_classes_are_the_own_corpuss_unless_the_user_maps_them(
    prepare_classifier, caplog
):
    iemocap = {"angry": ["ang"], "sad": ["sad"]}
    splits = prepare_classifier(classes=iemocap, explicit=False)
    names = ["calm", "joy", "rage"]
    assert list_classes(splits, iemocap) == names
    assert "do not fit" in caplog.text
    with pytest.raises(RecipeError, match="class angry .*calm, joy, rage"):
        prepare_classifier(classes=iemocap, explicit=True)


def relabel(own_csv, session, emo):
    table = pd.read_csv(own_csv, keep_default_na=False)
    table.loc[table["session"].isin(session), "emo"] = emo
    table.to_csv(own_csv, index=False)


def test_a_class_absent_from_the_training_sessions_is_named(
    prepare_classifier, own_csv
):
    relabel(own_csv, ["s1", "s3", "s4", "s5"], "joy")
    with pytest.raises(RecipeError, match="class angry .* of fold 2"):
        prepare_classifier(fold=2)
    prepare_classifier(fold=1)


def test_a_held_out_session_without_labels_keeps_its_number(
    prepare_classifier, own_csv
):
    relabel(own_csv, ["s2"], "")
    with pytest.raises(RecipeError, match="fold 2 has no labelled utterance"):
        prepare_classifier(fold=2)
    splits = prepare_classifier(fold=3)
    assert sessions_of(splits["test"]) == {"s3"}


def test_a_speaker_of_two_sessions_is_caught_when_manifests_are_read(
    prepare_adapter, prepare_classifier, own_csv
):
    table = pd.read_csv(own_csv, keep_default_na=False)
    table.loc[table["speaker"] == "s5m", "speaker"] = "s1f"
    table.to_csv(own_csv, index=False)
    for prepare in (prepare_adapter, prepare_classifier):
        with pytest.raises(RecipeError, match="speaker s1f .*train"):
            prepare(fold=1)
        prepare(fold=2)  # both sessions are for training


def test_a_leak_in_manifests_that_others_made_is_caught(
    prepare_classifier, manifests
):
    splits = prepare_classifier(1, "held_out")
    key, entry = next(iter(splits["test"].items()))
    leaked = {**splits["train"], key: entry}
    with open(manifests["train"], "w", encoding="utf-8") as file:
        json.dump(leaked, file)
    with pytest.raises(RecipeError, match=f"{entry['speaker']} .*train.*test"):
        read_manifests(manifests)


def test_manifests_that_are_missing_empty_or_thin_are_named(
    prepare_classifier, manifests
):
    splits = prepare_classifier()

    def write(name, content):
        with open(manifests[name], "w", encoding="utf-8") as file:
            file.write(content)

    write("train", "{}")
    with pytest.raises(RecipeError, match="train.json is empty"):
        read_manifests(manifests)
    write("train", "{half")
    with pytest.raises(RecipeError, match="train.json cannot be read"):
        read_manifests(manifests)
    write("train", json.dumps(splits["train"]))
    write("test", json.dumps({"u 1": {"wav": "a.wav"}}))
    with pytest.raises(RecipeError, match="test.json: .*u 1 lacks speaker"):
        read_manifests(manifests)
    manifests["valid"] += "x"
    with pytest.raises(RecipeError, match="valid.jsonx cannot be read"):
        read_manifests(manifests)


def test_the_digest_of_the_data_is_of_what_they_are_and_not_of_the_place(
    prepare_classifier,
):
    splits = prepare_classifier()
    digest = describe_data(splits, ["a", "b"])
    moved = json.loads(json.dumps(splits))
    for entry in moved["train"].values():
        entry["wav"] = f"/elsewhere/{entry['wav']}"
    shuffled = {
        name: dict(reversed(list(split.items())))
        for name, split in moved.items()
    }
    assert describe_data(shuffled, ["a", "b"]) == digest
    assert describe_data(splits, ["b", "a"]) != digest
    key = next(iter(splits["train"]))
    for field in ("speaker", "label", "digest"):
        changed = json.loads(json.dumps(splits))
        changed["train"][key][field] = "other"
        assert describe_data(changed, ["a", "b"]) != digest
    without = {**splits, "train": dict(list(splits["train"].items())[1:])}
    assert describe_data(without, ["a", "b"]) != digest


# Features --------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    encoder = SpeechEncoder("fbank")
    return FeatureCache(tmp_path / "cache", encoder, "float32", num_workers=0)


@pytest.fixture
def splits(prepare_classifier):
    return prepare_classifier(1, "held_out")


def test_every_utterance_of_every_split_gets_its_features(
    splits, cache, tmp_path
):
    kept = extract_features(cache, splits, tmp_path / "skipped.csv", 0.0)
    assert kept == splits
    digests = [e["digest"] for s in splits.values() for e in s.values()]
    assert cache.missing(digests) == []
    assert not (tmp_path / "skipped.csv").exists()


def make_too_short(make_wav, entry, digest):
    make_wav(entry["wav"], seconds=0.01)
    entry["digest"] = digest


def test_what_cannot_be_encoded_is_dropped_and_listed(
    splits, cache, tmp_path, make_wav
):
    bad = [next(iter(splits[name])) for name in ("train", "test")]
    for number, (key, name) in enumerate(zip(bad, ("train", "test"))):
        make_too_short(make_wav, splits[name][key], f"{number:032x}")
    csv = tmp_path / "skipped.csv"
    kept = extract_features(cache, splits, csv, 0.5)
    for name in SPLITS:
        assert kept[name].keys() == splits[name].keys() - set(bad)
    listing = pd.read_csv(csv)
    assert listing["id"].tolist() == bad
    assert listing["reason"].str.contains("too short").all()


def test_too_many_failures_stop_with_the_first_one_named(
    splits, cache, tmp_path, make_wav
):
    key, entry = next(iter(splits["train"].items()))
    make_too_short(make_wav, entry, "0" * 32)
    with pytest.raises(RecipeError, match=f"1 of 20 .*{key}.*max_skipped"):
        extract_features(cache, splits, tmp_path / "skipped.csv", 0.04)


def test_the_list_of_failures_goes_when_they_are_mended(
    splits, cache, tmp_path, make_wav
):
    key, entry = next(iter(splits["train"].items()))
    make_too_short(make_wav, entry, "0" * 32)
    csv = tmp_path / "skipped.csv"
    extract_features(cache, splits, csv, 0.5)
    make_wav(entry["wav"], seed=77)
    entry["digest"] = "1" * 32
    kept = extract_features(cache, splits, csv, 0.5)
    assert key in kept["train"]
    assert not csv.exists()


@pytest.mark.parametrize(
    "absent", [{"digest"}, {"duration"}, {"digest", "duration"}]
)
def test_manifests_that_others_made_need_neither_digest_nor_duration(
    splits, cache, tmp_path, absent
):
    files = {name: tmp_path / f"{name}.json" for name in splits}
    for name, split in splits.items():
        kept = {
            key: {k: v for k, v in entry.items() if k not in absent}
            for key, entry in split.items()
        }
        files[name].write_text(json.dumps(kept), "utf-8")
    read = read_manifests(files)
    for name, split in splits.items():
        for key, entry in split.items():
            assert read[name][key]["digest"] == entry["digest"]
            assert read[name][key]["duration"] == pytest.approx(0.1)
    kept = extract_features(cache, read, tmp_path / "skipped.csv", 0.0)
    assert kept == read


def test_audio_of_a_manifest_that_cannot_be_read_is_named(splits, tmp_path):
    files = {name: tmp_path / f"{name}.json" for name in splits}
    entry = next(iter(splits["test"].values()))
    del entry["duration"]
    entry["wav"] = str(tmp_path / "nowhere.wav")
    for name, split in splits.items():
        files[name].write_text(json.dumps(split), "utf-8")
    with pytest.raises(RecipeError, match="nowhere.wav cannot be opened"):
        read_manifests(files)


def test_the_same_audio_under_two_ids_is_encoded_once_and_kept_twice(
    splits, cache, tmp_path
):
    (one, entry), *_ = splits["train"].items()
    splits["train"]["again"] = dict(entry)
    kept = extract_features(cache, splits, tmp_path / "skipped.csv", 0.0)
    assert {one, "again"} <= kept["train"].keys()
    dataset = make_dataset(kept["train"], cache, 500, "error")
    by_id = {item["id"]: item["feats"] for item in dataset}
    assert torch.equal(by_id[one], by_id["again"])


def test_audio_of_both_sides_is_said_by_name(manifests, splits, caplog):
    """By other names: a mistake of the corpus, which flatters the scores."""
    (held_out, heard), (one, spoken) = (
        next(iter(splits[name].items())) for name in ("test", "train")
    )
    caplog.clear()
    read_manifests(manifests)
    assert "same audio" not in caplog.text
    spoken["sound"] = heard["sound"]  # in another format
    Path(manifests["train"]).write_text(json.dumps(splits["train"]))
    read_manifests(manifests)
    assert f"first {held_out} of speaker {heard['speaker']}" in caplog.text
    assert f"and {one} of speaker {spoken['speaker']}" in caplog.text
    assert "Leak: 1 utterances" in caplog.text


def test_frames_are_measured_over_all_frames_of_the_given_utterances(
    splits, cache, tmp_path, make_wav
):
    first, second, third = list(splits["train"].values())[:3]
    make_wav(first["wav"], seconds=0.5, seed=50)  # counts for its length
    first["digest"] = "5" * 32
    entries = {"a": first, "b": second}
    made = {"train": {**entries, "c": third}}
    extract_features(cache, made, tmp_path / "skipped.csv", 0.0)
    frames = torch.cat([cache.read(e["digest"]) for e in entries.values()])
    mean, std = measure_features(cache, entries)
    assert torch.allclose(mean, frames.mean(dim=0), atol=1e-5)
    assert torch.allclose(std, frames.std(dim=0, unbiased=False), atol=1e-5)


def test_frames_are_measured_as_often_as_they_are_trained_on(entries, cache):
    weights = {key: 1 + number % 3 for number, key in enumerate(entries)}
    repeated = {
        f"{key}+{number}": entries[key]
        for key in entries
        for number in range(weights[key])
    }
    weighted = measure_features(cache, entries, weights)
    for one, two in zip(weighted, measure_features(cache, repeated)):
        torch.testing.assert_close(one, two)
    plain = measure_features(cache, entries)
    assert not torch.allclose(weighted[0], plain[0])
    ones = measure_features(cache, entries, dict.fromkeys(entries, 1.0))
    assert all(map(torch.equal, ones, plain))


def test_the_deviation_is_right_where_the_mean_dwarfs_it(cache):
    frames = torch.tensor([[1000.0], [1000.1], [1000.2]])
    cache.write("a" * 32, frames, duration=0.06)
    _, std = measure_features(cache, {"u": {"digest": "a" * 32}})
    assert float(std) == pytest.approx(0.0816, rel=0.01)


# Datasets --------------------------------------------------------------------


@pytest.fixture
def entries(splits, cache, tmp_path):
    kept = extract_features(cache, splits, tmp_path / "skipped.csv", 0.0)
    return kept["train"]


def test_a_dataset_gives_ids_and_cached_frames_in_order(entries, cache):
    dataset = make_dataset(entries, cache, 6, "error", keys=["label"])
    items = list(dataset)
    assert [item["id"] for item in items] == list(entries)
    for item, entry in zip(items, entries.values()):
        assert item["label"] == entry["label"]
        assert item["feats"].shape == (6, 80)
        assert torch.equal(item["feats"], cache.read(entry["digest"]))


def test_a_long_utterance_is_refused_by_its_id_with_both_cures(entries, cache):
    with pytest.raises(RecipeError) as error:
        make_dataset(entries, cache, 5, "error")
    for part in (next(iter(entries)), "6 frames", "max_frames=5", "cut"):
        assert part in str(error.value)


def test_a_long_utterance_is_cut_to_its_beginning_by_key(entries, cache):
    (entry, *_) = entries.values()
    cut = make_dataset(entries, cache, 5, "cut")[0]["feats"]
    assert torch.equal(cut, cache.read(entry["digest"])[:5])


def test_another_way_with_long_utterances_is_refused(entries, cache):
    with pytest.raises(RecipeError, match="long_utterances=drop.*error or"):
        make_dataset(entries, cache, 5, "drop")


def labelled(*labels):
    return {f"u{i}": {"label": label} for i, label in enumerate(labels)}


def test_classes_are_listed_in_the_yamls_order():
    splits = {"train": labelled("sad", "angry"), "test": labelled("happy")}
    yaml = {"happy": ["h"], "sad": ["s"], "angry": ["a"], "neutral": ["n"]}
    assert list_classes(splits, yaml) == ["happy", "sad", "angry"]


@pytest.mark.parametrize("classes", [None, "all", {"sad": ["s"]}])
def test_classes_that_the_yaml_does_not_order_are_in_natural_order(classes):
    splits = {"train": labelled("sad", "10"), "test": labelled("9", "happy")}
    assert list_classes(splits, classes) == ["9", "10", "happy", "sad"]


# The adapter that stage 2 takes over -----------------------------------------

SETTINGS = {key: f"some {key}" for key in MODEL_KEYS}
SETTINGS.update(encoder_source="fbank", number_of_epochs=3, mask_ratio=0.4)


@pytest.fixture
def make_adapter(prepare_adapter, tmp_path):
    """Records an adapter as its training does."""

    def make(fold=1, protocol="paper", adapter_data="train", **changed):
        names = [f"{v}" for v in (fold, protocol, adapter_data, *changed)]
        folder = tmp_path / f"adapter-{'-'.join(names)}"
        train = prepare_adapter(fold, protocol, adapter_data)["train"]
        settings = {**SETTINGS, **changed}
        write_adapter_record(folder, settings, train, adapter_data)
        return folder

    return make


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fold", FOLDS)
def test_only_the_adapter_of_the_same_fold_is_taken(
    make_adapter, prepare_classifier, fold, protocol
):
    own = make_adapter(fold, protocol)
    others = [make_adapter(f, protocol) for f in FOLDS if f != fold]
    splits = prepare_classifier(fold, protocol)
    assert check_adapter(own, SETTINGS, splits)
    for other in others:
        with pytest.raises(RecipeError) as error:
            check_adapter(other, SETTINGS, splits)
        speakers = {
            entry["speaker"]
            for name in ("valid", "test")
            for entry in splits[name].values()
        }
        named = str(error.value).split()[1]
        assert named in speakers
        assert str(other) in str(error.value)


def test_an_adapter_that_saw_the_validation_speakers_is_refused(
    make_adapter, prepare_classifier
):
    adapter = make_adapter(1, "paper")  # trained on all but session 1
    splits = prepare_classifier(1, "held_out")  # validates on session 2
    with pytest.raises(RecipeError, match="speaker s2. is in the valid split"):
        check_adapter(adapter, SETTINGS, splits)


def test_a_speaker_is_recognised_in_utterances_the_adapter_did_not_see(
    make_adapter, prepare_classifier
):
    adapter = make_adapter(2)
    splits = prepare_classifier(1)
    for entry in splits["test"].values():
        entry["digest"] = f"{entry['digest'][::-1]}"  # other recordings
    splits["valid"] = splits["test"]
    with pytest.raises(RecipeError, match="speaker s1. is in"):
        check_adapter(adapter, SETTINGS, splits)


def test_an_adapter_of_another_corpus_may_share_speakers_names(
    make_adapter, prepare_classifier, caplog
):
    adapter = make_adapter(2)
    splits = prepare_classifier(1)
    caplog.clear()
    for split in splits.values():
        for entry in split.values():
            for kind in ("digest", "sound"):
                entry[kind] = entry[kind][::-1]
    others = {
        name: {f"other {key}": entry for key, entry in split.items()}
        for name, split in splits.items()
    }
    check_adapter(adapter, SETTINGS, others)
    # which is said, since they may be the same people
    (said,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "a speaker called s1f, too" in said
    # but another copy of the same corpus is known by its ids
    with pytest.raises(RecipeError, match="was trained on"):
        check_adapter(adapter, SETTINGS, splits)


def test_a_transductive_adapter_is_taken_as_asked_for(
    make_adapter, prepare_classifier
):
    adapter = make_adapter(1, adapter_data="all")
    assert check_adapter(adapter, SETTINGS, prepare_classifier(1))


def test_adapters_that_were_trained_otherwise_are_told_apart(
    make_adapter, prepare_classifier
):
    """Else a run would resume with another adapter's fine-tuning."""
    folders = [
        make_adapter(1),
        make_adapter(1, mask_ratio=0.2),
        make_adapter(1, number_of_epochs=4),
        make_adapter(1, "held_out"),
    ]
    splits = prepare_classifier(1, "held_out")
    splits["valid"] = splits["test"]  # all of them may be used
    found = [check_adapter(folder, SETTINGS, splits) for folder in folders]
    for i, identity in enumerate(found):
        assert identity not in found[:i]
    assert check_adapter(folders[0], SETTINGS, splits) == found[0]


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_an_adapter_of_another_model_is_refused_by_the_key(
    make_adapter, prepare_classifier, key
):
    adapter = make_adapter(1)
    splits = prepare_classifier(1)
    changed = {**SETTINGS, key: "another"}
    name = "encoder_source" if key == "encoder_key" else key
    with pytest.raises(RecipeError, match=f"{name}.*{SETTINGS[key]}.*another"):
        check_adapter(adapter, changed, splits)


@pytest.mark.parametrize("key", ENCODER_KEYS)
def test_an_adapter_of_another_encoder_is_refused_by_the_key(
    make_adapter, prepare_classifier, key
):
    mine = {**dict.fromkeys(ENCODER_KEYS, "this"), "encoder_key": "a1"}
    adapter = make_adapter(1, **mine)
    splits = prepare_classifier(1)
    changed = {**SETTINGS, **mine, key: "that", "encoder_key": "b2"}
    with pytest.raises(RecipeError) as error:
        check_adapter(adapter, changed, splits)
    said = str(error.value)
    assert f"was trained with {key}=this, but the classifier's is that" in said
    assert f"--{key}=this" in said
    # where no key differs, what lies there does
    changed[key] = "this"
    with pytest.raises(RecipeError, match="content of encoder_source=a1.*b2"):
        check_adapter(adapter, changed, splits)


def test_a_record_may_be_completed(make_adapter, prepare_classifier):
    """A stage 2 that goes on is not another one for what was added since."""
    adapter, splits = make_adapter(1), prepare_classifier(1)
    identity = check_adapter(adapter, SETTINGS, splits)
    path = adapter / "adapter.json"
    record = json.loads(path.read_text())
    assert record.pop("sounds") and record.pop("encoder")
    path.write_text(json.dumps(record))
    assert check_adapter(adapter, SETTINGS, splits) == identity


def test_the_model_keys_are_those_of_both_stages_networks(repository):
    """A key of the network that no check compares would slip through."""
    from ruamel.yaml import YAML

    folder = repository / "recipes" / "IEMOCAP" / "wap_adapter" / "hparams"
    for file, name in (("adapter", "student"), ("classifier", "adapter")):
        network = YAML().load(folder / f"{file}.yaml")[name]
        # the encoder gives the first two; of the start, nothing is left
        not_keys = {"input_size", "num_encoder_layers", "dropout"}
        not_keys |= {"projection_init", "residual_init"}
        assert set(network) - not_keys <= set(MODEL_KEYS)


def test_a_folder_without_adapter_is_named(prepare_classifier, tmp_path):
    with pytest.raises(RecipeError, match="adapter_folder=.*nowhere"):
        check_adapter(tmp_path / "nowhere", SETTINGS, prepare_classifier(1))


class Network(torch.nn.Linear):
    """Stands for a WAP-Transformer."""

    def __init__(self, value, size=2):
        super().__init__(size, size)
        torch.nn.init.constant_(self.weight, value)


@pytest.fixture
def trained(make_adapter):
    """An adapter's folder with its last checkpoint."""

    def make(epoch=3):
        folder = make_adapter(1)
        teacher = EMATeacher(Network(1.0))
        recoverables = {"student": Network(2.0), "teacher": teacher}
        checkpointer = Checkpointer(folder / "save", recoverables)
        checkpointer.save_checkpoint(meta={"epoch": epoch})
        return folder

    return make


@pytest.mark.parametrize("branch, value", [("teacher", 1.0), ("student", 2.0)])
def test_stage_2_starts_from_the_branch_that_was_asked_for(
    trained, branch, value
):
    adapter = Network(0.0)
    load_branch(trained(), branch, adapter)
    assert (adapter.weight == value).all()


def test_another_branch_is_refused(trained):
    with pytest.raises(RecipeError, match="adapter_branch=both.*teacher or"):
        load_branch(trained(), "both", Network(0.0))


def test_an_adapter_training_that_is_not_finished_is_refused(trained):
    with pytest.raises(RecipeError, match="not finished.* 2 of 3"):
        load_branch(trained(epoch=2), "teacher", Network(0.0))


def test_an_adapter_without_checkpoint_is_refused(make_adapter):
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        load_branch(make_adapter(1), "teacher", Network(0.0))


def test_weights_that_do_not_fit_are_refused_by_their_shape(trained):
    folder = trained()
    with pytest.raises(RecipeError, match="does not fit.*bias") as error:
        load_branch(folder, "student", Network(0.0, size=3))
    assert str(folder) in str(error.value)
