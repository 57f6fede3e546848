"""The probe and the effective rank: what they see, and that they only look."""

import copy
import math
import random
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import generator, make_utterances, randomise_
from recipe_runs import assert_equal_states

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.diagnostics import (
    DIAGNOSTICS,
    LEAST_LEARNED,
    MOST_FOLDS,
    REMEDIES,
    Diagnostics,
    _choose_sample,
    _effective_rank,
    _FrameCovariance,
    explain_lost,
)
from speechbrain_wap.evaluation.linear_probe import (
    cross_validate_probe,
    frame_statistics,
)
from speechbrain_wap.teacher import EMATeacher
from speechbrain_wap.wap_transformer import WAPTransformer

# The effective rank ----------------------------------------------------------


def cover(frames, size=7):
    """The covariance of frames that come a few at a time."""
    covariance = _FrameCovariance()
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


@pytest.mark.parametrize("spread, mean", [(0.0, 5), (1.0, 1e3), (3.0, 0)])
def test_the_effective_rank_is_that_of_the_centred_frames(spread, mean):
    source = generator(1)
    scales = torch.exp(spread * torch.randn(8, generator=source))
    frames = torch.randn(60, 8, generator=source) * scales + mean
    expected = naive_rank(frames)
    assert 1 < expected < 8
    assert _effective_rank(cover(frames)) == pytest.approx(expected, abs=1e-3)


def test_frames_that_are_alike_or_not_finite_have_no_rank():
    frames = torch.randn(1, 8, generator=generator()).expand(30, 8)
    assert _effective_rank(cover(frames)) == 0.0
    # nor has what float32 makes of them
    noise = torch.randint(0, 2, (30, 8), generator=generator())
    assert _effective_rank(cover(frames * (1 + 6e-8 * noise))) == 0.0
    frames = torch.full((4, 3), math.inf)
    assert math.isnan(_effective_rank(cover(frames)))


# The choice of utterances ----------------------------------------------------


def make_entries(counts=None, speakers="abc", count=6):
    """Entries with so many utterances of each (speaker, label)."""
    if counts is None:
        labels = ("joy", "rage")
        counts = {(s, label): count for s in speakers for label in labels}
    return {
        f"{speaker}-{label}-{number}": {"speaker": speaker, "emo": label}
        for (speaker, label), count in counts.items()
        for number in range(count)
    }


@pytest.mark.parametrize("count", [3, MOST_FOLDS, 3 * MOST_FOLDS + 1])
def test_no_fold_of_the_probe_learns_from_whom_it_is_tested_on(count):
    entries = make_entries(speakers=range(1, count + 1))
    for number, entry in enumerate(entries.values()):
        # names are spelt as the tables of several corpora may have them
        entry["speaker"] = f"{'0' * (number % 2)}{entry['speaker']}"
    sample = _choose_sample(entries, 1000, seed=1)
    assert sorted(sample.ids) == sorted(entries)
    assert [entries[key]["emo"] for key in sample.ids] == sample.labels
    folds = {}
    for key, fold in zip(sample.ids, sample.folds):
        speaker = entries[key]["speaker"].lstrip("0")
        folds.setdefault(speaker, set()).add(fold)
    assert len(folds) == count
    assert all(len(of_speaker) == 1 for of_speaker in folds.values())
    assert set(sample.folds) == set(range(min(count, MOST_FOLDS)))


def test_labels_that_cannot_be_learned_in_every_fold_are_dropped():
    counts = {
        ("a", ""): 50,
        ("a", "once"): 50,  # nothing is left where a is left out
        ("a", "rare"): 50,
        ("b", "rare"): LEAST_LEARNED - 1,
        ("a", "kept"): 50,
        ("b", "kept"): LEAST_LEARNED,
    }
    entries = make_entries() | make_entries(counts)
    sample = _choose_sample(entries, 1000, seed=1)
    kept = {"joy": 18, "rage": 18, "kept": 50 + LEAST_LEARNED}
    assert Counter(sample.labels) == kept


@pytest.mark.parametrize(
    "entries, most, reason",
    [
        (make_entries({("a", ""): 30, ("b", None): 30}), 1000, "no labels"),
        (
            make_entries(speakers="a", count=30),
            1000,
            r"joy \(30\), rage \(30\)",
        ),
        (make_entries(count=100), 8, "probe_utterances=8 leaves too few"),
    ],
)
def test_without_two_learnable_labels_there_is_no_probe(entries, most, reason):
    sample = _choose_sample(entries, most, seed=1)
    assert sample.labels is sample.folds is None
    assert re.search(reason, sample.reason)
    # but the frames are looked at
    assert len(set(sample.ids)) == min(most, len(entries))


@pytest.mark.parametrize("most", [30, 60, 100])
def test_a_choice_is_even_over_labels_and_folds(most):
    entries = make_entries(count=300)
    entries |= make_entries({(speaker, "calm"): 7 for speaker in "abc"})
    sample = _choose_sample(entries, most, seed=1)
    assert len(sample.ids) == len(set(sample.ids)) == most
    cells = Counter(zip(sample.labels, sample.folds))
    large = [n for (label, _), n in cells.items() if label != "calm"]
    assert max(large) - min(large) <= 1
    calm = [n for (label, _), n in cells.items() if label == "calm"]
    # the small ones are whole before the others get more
    assert min(calm) >= min(7, most // 9)


def test_a_choice_depends_on_seed_and_ids_only():
    entries = make_entries(count=100)
    one = _choose_sample(entries, 60, seed=1)
    items = list(entries.items())
    random.Random(0).shuffle(items)
    assert _choose_sample(dict(items), 60, seed=1) == one
    other = _choose_sample(entries, 60, seed=2)
    assert set(other.ids) != set(one.ids)
    assert Counter(other.labels) == Counter(one.labels)


# The probe -------------------------------------------------------------------


def test_the_probe_is_scored_on_what_it_was_not_fitted_on():
    source = np.random.default_rng(0)
    labels = ["joy", "rage"] * 20
    folds = [0] * 20 + [1] * 20
    # the cue says the contrary in the other fold
    signs = [(lab == "joy") != bool(fold) for lab, fold in zip(labels, folds)]
    pooled = 10.0 * np.array(signs)[:, None] + source.normal(size=(40, 3))
    assert cross_validate_probe(pooled, labels, folds) == 0.0
    half = pooled[:20], labels[:20]
    assert cross_validate_probe(*half, [0, 0, 1, 1] * 5) == 1.0


# What is measured ------------------------------------------------------------

LENGTHS = [5 + 7 * number % 23 for number in range(40)]
DIM = 6


class FakeCache:
    """Features of utterances in memory, of two encoder layers."""

    def __init__(self):
        self.feats, self.entries, self.reads = {}, {}, 0
        for number, frames in enumerate(make_utterances(LENGTHS, 2, DIM)):
            label = number // 2 % 2
            frames = 3 * frames + 0.8 * label + 50
            self.feats[f"d{number}"] = frames.half()
            self.entries[f"u{number}"] = {
                "digest": f"d{number}",
                "speaker": f"s{number % 4}",
                "emo": ("joy", "rage")[label],
            }

    def read(self, digest):
        self.reads += 1
        return self.feats[digest]

    def make_reader(self, max_frames):
        return lambda digest: self.read(digest)[:max_frames]


def make_networks():
    """A student in training mode, and a teacher with other weights."""
    student = WAPTransformer(
        *(DIM, 8, 2, 2, 8, 0.5), max_frames=40, num_encoder_layers=2
    )
    mean, std = torch.tensor([[50.0], [40.0]]), torch.tensor([[3.0], [9.0]])
    student.set_input_statistics(mean.expand(2, DIM), std.expand(2, DIM))
    teacher = EMATeacher(randomise_(student, seed=1))
    return randomise_(student, seed=2).train(), teacher


def make_diagnostics(cache, most=1000, max_frames=40):
    return Diagnostics(cache.entries, cache, max_frames, most, 1, "cpu")


def measure_by_hand(cache, network, max_frames, most_frames):
    """One utterance at a time, without any of what is tested."""
    pooled, frames = [], []
    for entry in cache.entries.values():
        feats = cache.read(entry["digest"])[:max_frames].float()
        with torch.no_grad():
            z = network(feats[None], torch.ones(1))[0]
        pooled.append(frame_statistics(z))
        frames.append(z[:: math.ceil(len(z) / most_frames)])
    labels = [entry["emo"] for entry in cache.entries.values()]
    folds = [int(entry["speaker"][1]) for entry in cache.entries.values()]
    probe = cross_validate_probe(np.stack(pooled), labels, folds)
    return probe, naive_rank(torch.cat(frames))


@pytest.mark.parametrize("max_frames, most_frames", [(40, 4), (9, 50)])
def test_each_utterance_is_measured_by_itself(
    monkeypatch, max_frames, most_frames
):
    module = "speechbrain_wap.evaluation.diagnostics"
    monkeypatch.setattr(f"{module}.MOST_FRAMES", most_frames)
    cache = FakeCache()
    student, teacher = make_networks()
    diagnostics = make_diagnostics(cache, max_frames=max_frames)
    values = diagnostics.measure(student, teacher)
    assert tuple(values) == DIAGNOSTICS

    def standardise(feats, lens):
        feats = (feats - student.input_mean) / student.input_std
        return feats.mean(dim=2)

    networks = {"raw": standardise, "student": student.eval()}
    networks["teacher"] = teacher
    for branch, network in networks.items():
        probe, rank = measure_by_hand(cache, network, max_frames, most_frames)
        assert values[f"probe_{branch}"] == pytest.approx(probe, abs=1e-6)
        assert values[f"rank_{branch}"] == pytest.approx(rank, abs=0.01)
    # and they differ, so that no branch stands for another
    assert len({values[f"rank_{branch}"] for branch in networks}) == 3


def test_measuring_changes_nothing():
    cache = FakeCache()
    student, teacher = make_networks()
    networks = torch.nn.ModuleList([student, teacher])
    before = copy.deepcopy(networks.state_dict())

    def read_random_states():
        numpy_state = np.random.get_state()[1].tolist()
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state

    states = read_random_states()
    diagnostics = make_diagnostics(cache, most=24)
    first = diagnostics.measure(student, teacher)
    assert all(module.training for module in student.modules())
    assert not teacher.training
    assert read_random_states() == states
    assert_equal_states(networks.state_dict(), before)
    assert all(p.grad is None for p in student.parameters())
    # nor does an earlier measurement
    assert diagnostics.measure(student.eval(), teacher) == first
    assert not student.training
    assert cache.reads == 2 * 24
    assert make_diagnostics(FakeCache(), 24).measure(student, teacher) == first


def test_without_labels_only_ranks_are_measured(caplog):
    cache = FakeCache()
    for entry in cache.entries.values():
        entry["emo"] = ""
    values = make_diagnostics(cache).measure(*make_networks())
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


BRANCHES = ["student", "teacher"]


def scores(raw, student, teacher):
    """What is measured of the probe."""
    names = ("probe_raw", "probe_student", "probe_teacher")
    return dict(zip(names, (raw, student, teacher)))


@pytest.mark.parametrize(
    "start, now, branches, start_loses, training_loses",
    [
        ((0.5, 0.5, 0.5), (0.5, 0.4, 0.6), ["student"], False, True),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), [], False, False),
        ((0.5, 0.3, 0.3), (0.5, 0.3, 0.4), BRANCHES, True, False),
        ((0.5, 0.4, 0.4), (0.5, 0.4, 0.3), BRANCHES, True, True),
        (None, (0.5, 0.6, 0.4), ["teacher"], False, True),
        ((None, None, None), (None, None, None), [], False, False),
    ],
)
def test_the_warning_tells_what_the_start_lost_from_what_training_lost(
    start, now, branches, start_loses, training_loses
):
    now = scores(*now)
    rows = [{"epoch": 0, **scores(*start)}] if start else []
    warning = explain_lost(1, now, rows, REMEDIES)
    assert (warning is not None) == bool(branches)
    for part, is_said in {
        "the student's frames": "student" in branches,
        "the teacher's frames": "teacher" in branches,
        "start loses information": start_loses,
        "training loses information": training_loses,
    }.items():
        assert (part in (warning or "")) == is_said
    # not again, until another branch has fallen
    rows.append({"epoch": 1, **now})
    assert explain_lost(2, now, rows, REMEDIES) is None


def test_only_cures_that_are_not_in_use_are_given():
    start = [{"epoch": 0, **scores(0.5, 0.4, 0.4)}]
    settings = {"mlp_residual": True, "residual_init": 0.05}
    settings["projection_init"] = "random"
    warning = explain_lost(1, scores(0.5, 0.4, 0.4), start, settings)
    assert warning.endswith("; try projection_init=orthogonal.")
    warning = explain_lost(1, scores(0.5, 0.4, 0.4), start, REMEDIES)
    assert "try" not in warning


def test_frames_that_are_not_finite_stop_the_run(import_script):
    script = import_script("recipes/IEMOCAP/wap_adapter/train_adapter.py")
    brain = object.__new__(script.AdapterBrain)
    brain.optimizer_step = 8
    brain.diagnostics = SimpleNamespace(measure=lambda *_: {"rank": math.nan})
    brain.hparams = SimpleNamespace(
        probe_every=5, number_of_epochs=12, student=None, teacher=None
    )
    assert brain.diagnose(4) == {}
    for epoch in (5, 12):
        with pytest.raises(RecipeError, match="frames are not finite at .* 8"):
            brain.diagnose(epoch)
