"""The probe and the effective rank: what they see, and that they only look."""

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_near, generator, make_utterances, randomise_
from recipe_runs import TINY

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.diagnostics import (
    CURES,
    DIAGNOSTICS,
    LEAST_LEARNED,
    MOST_FOLDS,
    Diagnostics,
    FrameCovariance,
    choose_sample,
    effective_rank,
    explain_loss,
)
from speechbrain_wap.evaluation.linear_probe import (
    cross_validate_probe,
    frame_statistics,
)
from speechbrain_wap.teacher import EMATeacher
from speechbrain_wap.training.checkpoints import Checkpointer
from speechbrain_wap.wap_transformer import WAPTransformer

TRAIN_ADAPTER = "recipes/IEMOCAP/wap_adapter/train_adapter.py"

# The effective rank ----------------------------------------------------------


def cover(frames, size=7):
    """The covariance of frames that come a few at a time."""
    covariance = FrameCovariance()
    for part in frames.split(size):
        covariance.add(part)
    return covariance.value()


def naive_rank(frames):
    """The formula of Roy and Vetterli on the frames themselves."""
    frames = frames.double()
    values = torch.linalg.svdvals(frames - frames.mean(dim=0))
    shares = values / values.sum()
    shares = shares[shares > 0]
    return math.exp(-float((shares * shares.log()).sum()))


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e6])
def test_the_covariance_of_parts_is_that_of_the_whole(mean):
    frames = torch.randn(50, 6, generator=generator()) + mean
    expected = torch.cov(frames.double().T, correction=0)
    assert_near(cover(frames), expected, atol=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_the_effective_rank_is_that_of_the_centred_frames(spread):
    source = generator(1)
    scales = torch.exp(spread * torch.randn(8, generator=source))
    frames = torch.randn(60, 8, generator=source) * scales + 5
    expected = naive_rank(frames)
    assert 1 < expected < 8
    assert effective_rank(cover(frames)) == pytest.approx(expected, abs=1e-3)


def test_the_effective_rank_counts_directions_that_are_used_alike():
    axes, _ = torch.linalg.qr(torch.randn(9, 9, generator=generator()))
    corners = torch.cat([torch.eye(3), -torch.eye(3)])
    frames = 50 * corners @ axes[:3] + 7  # in 3 of 9 directions
    assert effective_rank(cover(frames)) == pytest.approx(3.0, abs=1e-2)
    line = torch.linspace(-1, 1, 20)[:, None] * axes[:1]
    assert effective_rank(cover(line)) == pytest.approx(1.0, abs=1e-2)


def test_frames_that_are_all_alike_have_no_rank():
    frames = torch.randn(1, 8, generator=generator()).expand(30, 8)
    assert effective_rank(cover(frames)) == 0.0
    # nor has what float32 makes of them
    noise = torch.randint(0, 2, (30, 8), generator=generator())
    assert effective_rank(cover(frames * (1 + 6e-8 * noise))) == 0.0


def test_frames_that_are_not_finite_have_no_number_for_a_rank():
    frames = torch.ones(4, 3)
    frames[2, 1] = math.inf
    assert math.isnan(effective_rank(cover(frames)))


# The choice of utterances ----------------------------------------------------


def make_entries(counts, speakers=2):
    """Entries with so many utterances of each (session, label)."""
    entries = {}
    for (session, label), count in counts.items():
        for number in range(count):
            entries[f"{session}-{label}-{number}"] = {
                "session": session,
                "speaker": f"{session}{number % speakers}",
                "emo": label,
            }
    return entries


def even(sessions="abc", labels=("joy", "rage"), count=6):
    return {(s, label): count for s in sessions for label in labels}


def test_a_fold_of_the_probe_is_a_training_session():
    entries = make_entries(even())
    sample = choose_sample(entries, 1000, seed=1)
    assert sample.unit == "session"
    assert sorted(sample.ids) == sorted(entries)
    assert [entries[key]["emo"] for key in sample.ids] == sample.labels
    folds = {
        (entries[key]["session"], fold)
        for key, fold in zip(sample.ids, sample.folds)
    }
    assert folds == {("a", 0), ("b", 1), ("c", 2)}


def make_two_corpora(prefix):
    """Two corpora whose sessions are called alike."""
    entries = make_entries(even("12"))
    for key, entry in make_entries(even("12", ("joy", "calm"))).items():
        speaker = f"{prefix}{entry['speaker']}"
        entries[f"b/{key}"] = {**entry, "table": "b", "speaker": speaker}
    return entries


def test_sessions_with_speakers_in_common_are_one():
    """No fold of the probe learns from whom it is tested on."""
    # as the manifests have it: speakers of equal names are one person
    for entries in (make_two_corpora(""), make_two_corpora("0")):
        sample = choose_sample(entries, 1000, seed=1)
        assert sample.unit == "session"
        folds = {
            (entries[key]["session"], fold)
            for key, fold in zip(sample.ids, sample.folds)
        }
        assert folds == {("1", 0), ("2", 1)}
    for entry in entries.values():  # whoever is in all sessions
        entry["speaker"] = "anna"
    assert choose_sample(entries, 1000, seed=1).labels is None


def test_a_choice_that_is_too_small_says_so():
    reason = choose_sample(make_entries(even("abc")), 8, seed=1).reason
    assert reason.endswith("probe_utterances=8 leaves too few: raise it")


def test_sessions_of_several_corpora_are_told_apart():
    entries = make_two_corpora("b/")
    sample = choose_sample(entries, 1000, seed=1)
    assert sample.unit == "session"
    folds = {
        (entries[key].get("table"), entries[key]["session"], fold)
        for key, fold in zip(sample.ids, sample.folds)
    }
    assert folds == {
        (None, "1", 0),
        (None, "2", 1),
        ("b", "1", 2),
        ("b", "2", 3),
    }
    # a label that both have is one
    assert Counter(sample.labels) == {"joy": 24, "rage": 12, "calm": 12}


def test_a_single_labelled_session_is_split_by_speakers():
    counts = even("a", count=20) | {("b", ""): 9}
    entries = make_entries(counts, speakers=4)
    sample = choose_sample(entries, 1000, seed=1)
    assert sample.unit == "speaker"
    assert len(sample.ids) == 40  # what has no label is no class
    speakers = {
        (entries[key]["speaker"], fold)
        for key, fold in zip(sample.ids, sample.folds)
    }
    assert speakers == {(f"a{n}", n) for n in range(4)}


def test_labels_that_cannot_be_learned_in_every_fold_are_dropped():
    few, enough = LEAST_LEARNED - 1, LEAST_LEARNED
    counts = even() | {
        ("a", "once"): 50,  # nothing is left where a is left out
        ("a", "rare"): 50,
        ("b", "rare"): few,
        ("a", "kept"): 50,
        ("b", "kept"): enough,
    }
    sample = choose_sample(make_entries(counts), 1000, seed=1)
    assert Counter(sample.labels) == {
        "joy": 18,
        "rage": 18,
        "kept": 50 + enough,
    }


@pytest.mark.parametrize(
    "counts, says",
    [
        ({("a", ""): 30, ("b", ""): 30}, "no labels"),
        ({("a", "joy"): 30, ("b", "joy"): 30}, r"joy \(60\)"),
        (even(count=1), r"joy \(3\), rage \(3\)"),
    ],
    ids=["unlabelled", "one label", "few"],
)
def test_without_two_learnable_labels_there_is_no_probe(counts, says):
    entries = make_entries(counts)
    sample = choose_sample(entries, 1000, seed=1)
    assert sample.labels is sample.folds is None
    assert re.search(says, sample.reason)
    # but the frames are looked at
    assert sorted(sample.ids) == sorted(entries)
    assert len(choose_sample(entries, 5, seed=1).ids) == 5


def test_a_single_speaker_is_not_probed():
    entries = make_entries(even("a", count=30), speakers=1)
    assert choose_sample(entries, 1000, seed=1).labels is None


def test_a_manifest_of_ones_own_may_lack_sessions_and_labels():
    entries = make_entries(even("ab", count=20), speakers=3)
    for number, entry in enumerate(entries.values()):
        del entry["session"]
        if number % 2:
            entry["emo"] = None
    sample = choose_sample(entries, 1000, seed=1)
    assert sample.unit == "session" or sample.unit == "speaker"
    assert set(sample.labels) == {"joy", "rage"}
    assert len(sample.ids) == 40


@pytest.mark.parametrize("most", [30, 60, 100])
def test_a_choice_is_even_over_labels_and_folds(most):
    counts = even("abc", ("joy", "rage"), 300) | even("abc", ("calm",), 7)
    sample = choose_sample(make_entries(counts), most, seed=1)
    assert len(sample.ids) == len(set(sample.ids)) == most
    cells = Counter(zip(sample.labels, sample.folds))
    large = [n for (label, _), n in cells.items() if label != "calm"]
    assert max(large) - min(large) <= 1
    calm = [n for (label, _), n in cells.items() if label == "calm"]
    # the small ones are whole before the others get more
    assert min(calm) >= min(7, most // 9)


def test_a_choice_depends_on_seed_and_ids_only():
    entries = make_entries(even(count=100))
    one = choose_sample(entries, 60, seed=1)
    items = list(entries.items())
    random.Random(0).shuffle(items)
    assert choose_sample(dict(items), 60, seed=1) == one
    other = choose_sample(entries, 60, seed=2)
    assert set(other.ids) != set(one.ids)
    assert Counter(other.labels) == Counter(one.labels)


def test_a_choice_too_small_to_learn_from_is_not_probed():
    entries = make_entries(even(count=100))
    sample = choose_sample(entries, 10, seed=1)
    assert sample.labels is None and len(sample.ids) == 10


def test_many_sessions_share_the_folds():
    sessions = [f"s{n}" for n in range(3 * MOST_FOLDS + 1)]
    entries = make_entries(even(sessions, count=1))
    sample = choose_sample(entries, 1000, seed=1)
    assert set(sample.folds) == set(range(MOST_FOLDS))
    folds = {}
    for key, fold in zip(sample.ids, sample.folds):
        assert folds.setdefault(entries[key]["session"], fold) == fold


# The probe -------------------------------------------------------------------


def test_the_probe_is_scored_on_what_it_was_not_fitted_on():
    source = np.random.default_rng(0)
    labels = ["joy", "rage"] * 20
    folds = [0] * 20 + [1] * 20
    # the cue says the contrary in the other fold
    signs = [
        (label == "joy") != bool(fold) for label, fold in zip(labels, folds)
    ]
    pooled = 10.0 * np.array(signs)[:, None] + source.normal(size=(40, 3))
    assert cross_validate_probe(pooled, labels, folds) == 0.0
    half = pooled[:20], labels[:20]
    assert cross_validate_probe(*half, [0, 0, 1, 1] * 5) == 1.0


def test_the_probes_score_is_the_mean_recall():
    # all of the large class are right, none of the small one
    labels = ["joy"] * 16 + ["rage"] * 4
    pooled = np.array([[0.0]] * 8 + [[1.0]] * 8 + [[0.0], [1.0]] * 2)
    pooled = np.concatenate([pooled, pooled])
    folds = [0] * 20 + [1] * 20
    ua = cross_validate_probe(pooled, labels * 2, folds)
    assert ua == pytest.approx(0.5)


# What is measured ------------------------------------------------------------

LENGTHS = [5 + 7 * number % 23 for number in range(40)]
DIM = 6


class FakeCache:
    """Features of utterances in memory."""

    def __init__(self, several=False):
        feats = make_utterances(LENGTHS, 2 * DIM if several else DIM)
        self.feats = {}
        self.entries = {}
        self.reads = 0
        for number, frames in enumerate(feats):
            label = number // 2 % 2
            frames = 3 * frames + 0.8 * label + 50
            if several:
                frames = frames.unflatten(1, (2, DIM))
            self.feats[f"d{number}"] = frames.half()
            self.entries[f"u{number}"] = {
                "digest": f"d{number}",
                "speaker": f"s{number % 4}",
                "session": f"s{number % 4}",
                "emo": ("joy", "rage")[label],
            }

    def read(self, digest):
        self.reads += 1
        return self.feats[digest]


def make_networks(several=False, dropout=0.5):
    """A student in training mode, and a teacher with other weights."""
    layers = 2 if several else 1
    student = WAPTransformer(
        DIM,
        d_model=8,
        nhead=2,
        d_ffn=8,
        num_layers=2,
        dropout=dropout,
        max_frames=40,
        num_encoder_layers=layers,
    )
    teacher = EMATeacher(randomise_(student, seed=1))
    randomise_(student, seed=2)
    shape = (2, DIM) if several else (DIM,)
    mean, std = torch.full(shape, 50.0), torch.full(shape, 3.0)
    if several:
        mean[1], std[1] = 40.0, 9.0
    student.set_input_statistics(mean, std)
    teacher.model.set_input_statistics(mean, std)
    return student.train(), teacher


def make_diagnostics(cache, most=1000, max_frames=40):
    return Diagnostics(cache.entries, cache, max_frames, most, 1, "cpu")


def measure_by_hand(cache, network, max_frames=40):
    """One utterance at a time, without any of what is tested."""
    pooled, frames = [], []
    for entry in cache.entries.values():
        feats = cache.read(entry["digest"])[:max_frames].float()
        with torch.no_grad():
            z = network(feats[None], torch.ones(1))[0]
        pooled.append(frame_statistics(z))
        frames.append(z)
    labels = [entry["emo"] for entry in cache.entries.values()]
    folds = [int(entry["session"][1]) for entry in cache.entries.values()]
    probe = cross_validate_probe(np.stack(pooled), labels, folds)
    return probe, naive_rank(torch.cat(frames))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("max_frames", [40, 9])
def test_the_diagnostics_are_of_each_utterance_by_itself(several, max_frames):
    cache = FakeCache(several)
    student, teacher = make_networks(several)
    values = make_diagnostics(cache, max_frames=max_frames).measure(
        student, teacher
    )
    assert tuple(values) == DIAGNOSTICS

    def see(feats, lens):
        feats = (feats - student.input_mean) / student.input_std
        return feats.mean(dim=2) if several else feats

    networks = {"raw": see, "student": student.eval(), "teacher": teacher}
    for branch, network in networks.items():
        probe, rank = measure_by_hand(cache, network, max_frames)
        assert values[f"probe_{branch}"] == pytest.approx(probe, abs=1e-6)
        assert values[f"rank_{branch}"] == pytest.approx(rank, abs=0.01)
    # and they differ, so that no branch stands for another
    assert len({values[f"rank_{branch}"] for branch in networks}) == 3


def test_the_rank_takes_few_frames_of_long_utterances(monkeypatch):
    monkeypatch.setattr("speechbrain_wap.evaluation.diagnostics.MOST_FRAMES", 4)
    taken = []
    add = FrameCovariance.add
    monkeypatch.setattr(
        FrameCovariance,
        "add",
        lambda self, frames: (taken.append(len(frames)), add(self, frames)),
    )
    make_diagnostics(FakeCache()).measure(*make_networks())
    assert max(taken) == 4
    assert min(taken) >= 3


def test_looking_changes_nothing():
    cache = FakeCache()
    student, teacher = make_networks()
    before = {
        key: value.clone()
        for network in (student, teacher)
        for key, value in network.state_dict().items()
    }
    states = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()
    diagnostics = make_diagnostics(cache)
    first = diagnostics.measure(student, teacher)
    assert student.training and all(m.training for m in student.modules())
    assert not teacher.training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(
        np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state)
    )
    for network in (student, teacher):
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in student.parameters())
    # nor do looks that were taken before
    assert diagnostics.measure(student.eval(), teacher) == first
    assert not student.training
    assert make_diagnostics(FakeCache()).measure(student, teacher) == first


def test_a_student_that_fails_stays_in_its_mode():
    student, teacher = make_networks()
    with pytest.raises(ValueError, match="max_frames"):
        make_diagnostics(FakeCache(), max_frames=99).measure(
            WAPTransformer(DIM, 8, 1, 2, 8, max_frames=3), teacher
        )
    student.max_frames = 3
    with pytest.raises(ValueError, match="max_frames"):
        make_diagnostics(FakeCache()).measure(student, teacher)
    assert student.training


def test_each_look_reads_an_utterance_once():
    cache = FakeCache()
    diagnostics = make_diagnostics(cache, most=24)
    for looks in (1, 2, 3):
        diagnostics.measure(*make_networks())
        assert cache.reads == 24 * looks


def test_without_labels_only_ranks_are_measured(caplog):
    cache = FakeCache()
    for entry in cache.entries.values():
        entry["emo"] = ""
    diagnostics = make_diagnostics(cache)
    values = diagnostics.measure(*make_networks())
    diagnostics.measure(*make_networks())
    for name in DIAGNOSTICS:
        assert (values[name] is None) == name.startswith("probe")
    assert caplog.text.count("No probe of the emotions") == 1


def test_frames_that_are_not_finite_are_nan_not_an_error():
    student, teacher = make_networks()
    with torch.no_grad():
        student.mlp[-1].bias[0] = math.inf
    values = make_diagnostics(FakeCache()).measure(student, teacher)
    assert math.isnan(values["probe_student"])
    assert math.isnan(values["rank_student"])
    assert values["probe_teacher"] >= 0


# In the training -------------------------------------------------------------


@pytest.fixture
def make_brain(import_script, tmp_path):
    """An AdapterBrain that has all that watching needs, and no more."""
    script = import_script(TRAIN_ADAPTER)

    def make(probe_every=5, number_of_epochs=12, probes=(), rows=()):
        measured = iter(probes)
        brain = object.__new__(script.AdapterBrain)
        brain.optimizer_step, brain.logged = 8, []

        def measure(student, teacher):
            values = dict.fromkeys(DIAGNOSTICS, 1.0)
            return {**values, "probe_raw": 0.5, "probe_teacher": next(measured)}

        brain.diagnostics = SimpleNamespace(measure=measure)
        brain.statistics = SimpleNamespace(rows=list(rows))
        brain.statistics.end_epoch = brain.statistics.rows.append
        brain.hparams = SimpleNamespace(
            probe_every=probe_every,
            number_of_epochs=number_of_epochs,
            student=None,
            teacher=None,
            train_logger=SimpleNamespace(
                log_stats=lambda row, **_: brain.logged.append(row)
            ),
        )
        return brain

    return make


def train(brain, epochs):
    """Goes through epochs; returns those that are measured."""
    measured = []
    for epoch in epochs:
        values = brain.diagnose(epoch)
        brain.log_row({"epoch": epoch}, values, {"loss": 1.0}, None)
        if values:
            measured.append(epoch)
    return measured


@pytest.mark.parametrize(
    "every, expected",
    [
        (5, [0, 5, 10, 12]),
        (4, [0, 4, 8, 12]),
        (100, [0, 12]),
        (1, list(range(13))),
        (0, []),
        (None, []),
    ],
)
def test_it_is_looked_every_few_epochs_and_at_both_ends(
    make_brain, every, expected
):
    brain = make_brain(every, probes=[0.9] * 13)
    assert train(brain, range(13)) == expected


def test_every_row_has_the_same_keys(make_brain):
    brain = make_brain(probes=[0.9, 0.9, 0.9])
    train(brain, range(7))
    rows = brain.statistics.rows
    assert {tuple(row) for row in rows} == {
        ("epoch", *DIAGNOSTICS, "train", "valid")
    }
    assert [row["probe_teacher"] for row in rows] == [
        *(0.9, None, None, None, None, 0.9, None)
    ]
    assert "probe_teacher" in brain.logged[5]
    assert list(brain.logged[6]) == ["epoch"]


def count_warnings(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "WARNING"
    ]


def test_a_probe_below_the_raw_features_is_warned_of_once(make_brain, caplog):
    probes = [0.4, 0.3, 0.49, 0.5, 0.2, 0.0, 0.1, 0.6]
    brain = make_brain(probe_every=1, number_of_epochs=7, probes=probes)
    train(brain, range(8))
    # not of the untrained networks; anew where it had been as good between
    said = count_warnings(caplog)
    assert ["epoch 1 " in said[0], "epoch 4 " in said[1]] == [True, True]
    assert len(said) == 2
    assert "Probe" in said[0]
    assert "UA 30.0 %" in said[0] and "50.0 %" in said[0]


def see(raw, student, teacher):
    return {
        "probe_raw": raw,
        "probe_student": student,
        "probe_teacher": teacher,
    }


@pytest.mark.parametrize(
    "start, now, branches, start_loses, training_loses",
    [
        (see(0.5, 0.5, 0.5), see(0.5, 0.6, 0.4), ["teacher"], False, True),
        (see(0.5, 0.5, 0.5), see(0.5, 0.4, 0.6), ["student"], False, True),
        (see(0.5, 0.5, 0.5), see(0.5, 0.5, 0.5), [], False, False),
        (
            *(see(0.5, 0.3, 0.3), see(0.5, 0.3, 0.4)),
            *(["student", "teacher"], True, False),
        ),
        (
            *(see(0.5, 0.4, 0.4), see(0.5, 0.4, 0.3)),
            *(["student", "teacher"], True, True),
        ),
        (see(None, None, None), see(None, None, None), [], False, False),
    ],
)
def test_the_warning_tells_what_the_start_lost_from_what_training_lost(
    start, now, branches, start_loses, training_loses
):
    rows = [{"epoch": 0, **start}]
    said = explain_loss(1, now, rows, CURES)
    assert (said is not None) == bool(branches)
    for branch in ("student", "teacher"):
        assert (f"the {branch}'s frames" in (said or "")) == (
            branch in branches
        )
    assert ("start loses information" in (said or "")) == start_loses
    assert ("training loses information" in (said or "")) == training_loses
    # not again, until another branch has fallen
    rows.append({"epoch": 1, **now})
    assert explain_loss(2, now, rows, CURES) is None


def test_only_cures_that_are_not_in_use_are_given():
    start = [{"epoch": 0, **see(0.5, 0.4, 0.4)}]
    settings = {"mlp_residual": True, "residual_init": 0.05}
    settings["projection_init"] = "random"
    said = explain_loss(1, see(0.5, 0.4, 0.4), start, settings)
    assert said.endswith("; try projection_init=orthogonal.")
    said = explain_loss(1, see(0.5, 0.4, 0.4), start, CURES)
    assert "try" not in said


def test_a_resumed_run_warns_as_if_it_had_not_been_interrupted(
    make_brain, caplog
):
    probes = [0.4, 0.3, 0.0, 0.6, 0.2, 0.3]
    brain = make_brain(probe_every=2, number_of_epochs=10, probes=probes)
    train(brain, range(11))
    whole = count_warnings(caplog)
    assert len(whole) == 2
    for stop in range(11):
        caplog.clear()
        first = make_brain(2, 10, probes)
        train(first, range(stop))
        rows = first.statistics.rows
        done = sum(row["probe_raw"] is not None for row in rows)
        second = make_brain(2, 10, probes[done:], rows)
        train(second, range(stop, 11))
        assert count_warnings(caplog) == whole
        rows = second.statistics.rows
        assert rows == brain.statistics.rows


def test_nothing_is_warned_of_where_nothing_is_probed(make_brain, caplog):
    brain = make_brain()
    values = dict.fromkeys(DIAGNOSTICS)
    brain.diagnostics.measure = lambda *_: {**values, "rank_raw": 1.0}
    train(brain, range(13))
    assert not count_warnings(caplog)


def test_frames_that_are_not_finite_stop_the_run(make_brain):
    brain = make_brain(probes=[0.9, math.nan])
    with pytest.raises(RecipeError, match="frames are not finite at opt.* 8"):
        train(brain, range(6))


@pytest.fixture
def train_adapter(import_script, make_corpus, tmp_path, monkeypatch):
    """Trains an adapter on a tiny corpus; returns its folder."""
    # a list of all installed packages, which takes half of a run's time
    name = "speechbrain.utils.logger.get_environment_description"
    monkeypatch.setattr(name, lambda: "")
    script = import_script(TRAIN_ADAPTER)
    file = Path(script.__file__).parent / "hparams" / "adapter.yaml"
    table = make_corpus(tmp_path / "corpus")

    def run(name, *options):
        folder = tmp_path / name
        script.main(
            [str(file), *TINY, f"--corpus_csv={table}", "--num_layers=1"]
            + [f"--cache_folder={tmp_path / 'cache'}", "--feature_workers=0"]
            + ["--num_attributes=4", "--batch_size=4", *options]
            + [f"--output_folder={folder}"]
        )
        return folder

    return run


def read_checkpoint(folder):
    """Reads the files of a run's last checkpoint, but for its rows."""
    checkpoint = Checkpointer(folder / "save").find_checkpoint()
    return {
        name: path.read_bytes()
        for name, path in checkpoint.paramfiles.items()
        if name != "statistics"
    }


def test_a_training_that_is_watched_learns_the_same(train_adapter):
    watched = train_adapter("a", "--number_of_epochs=3", "--probe_every=1")
    alone = train_adapter("b", "--number_of_epochs=3", "--probe_every=null")
    files = read_checkpoint(watched)
    assert {"student", "optimizer", "random_state"} <= files.keys()
    assert files == read_checkpoint(alone)
    rows = [
        json.loads((folder / "history.json").read_text("utf-8"))
        for folder in (watched, alone)
    ]
    assert [row["epoch"] for row in rows[0]] == [0, 1, 2, 3]
    assert [row["epoch"] for row in rows[1]] == [1, 2, 3]
    for one, other in zip(rows[0][1:], rows[1]):
        assert all(one[name] is not None for name in DIAGNOSTICS)
        assert all(other[name] is None for name in DIAGNOSTICS)
        kept = other.keys() - DIAGNOSTICS
        assert all(one[key] == other[key] for key in kept)
    (first, *_) = rows[0]
    assert first["train"] is first["valid"] is None
    assert first["probe_student"] == first["probe_teacher"]  # its copy
    assert first.keys() == rows[1][0].keys()
    # how a run is watched may change when it goes on
    longer = train_adapter("b", "--number_of_epochs=4", "--probe_every=2")
    later = json.loads((longer / "history.json").read_text("utf-8"))
    assert later[:3] == rows[1]
    assert later[3]["epoch"] == 4
    assert later[3]["probe_raw"] == first["probe_raw"]
