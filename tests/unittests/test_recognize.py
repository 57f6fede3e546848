"""The command recognize: every file is done or named, in any format."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure

from speechbrain_wap import recognize
from speechbrain_wap.__main__ import main as front_door
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.inference import EmotionRecognizer
from speechbrain_wap.recognize import list_files, main
from speechbrain_wap.reports import timeline

PARTS = [("", 1), ("low", 6), ("high", 5), ("", 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_sound):
    """Files, in two folders, of which two are called alike."""
    folder = tmp_path_factory.mktemp("some calls")
    write_sound(folder / "a.wav", ("low", 1))
    write_sound(folder / "more" / "deep" / "a.FLAC", ("high", 1))
    write_sound(folder / "more" / "long.wav", *PARTS, rate=8000)
    (folder / "notes.txt").write_text("none of it")
    (folder / "._a.wav").write_text("of a Mac")
    return folder


@pytest.fixture
def recognise(model, capsys):
    """Runs the command; gives what it printed and its exit status."""

    def run(*arguments, model=model):
        status = 0
        try:
            main([str(model), *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        assert "%|" not in said.err  # no bar without a terminal
        return said.out, said.err, status

    return run


def test_names_patterns_and_folders_stand_for_files(folder, monkeypatch):
    names = ["a.wav", "more/deep/a.FLAC", "more/long.wav"]
    files = [str(folder / name) for name in names]
    assert list_files([folder]) == files
    assert list_files([folder / "more", folder / "*.wav"]) == [
        *files[1:],
        files[0],
    ]
    assert list_files([files[0], folder, files[0]]) == files
    assert list_files([folder / "**" / "*.wav"]) == [files[0], files[2]]
    monkeypatch.setenv("HOME", str(folder))
    assert list_files(["~/a.wav"]) == files[:1]
    # what stands for none is reported, not left out
    assert list_files([folder / "*.mp3"]) == [str(folder / "*.mp3")]
    odd = folder / "[1].wav"
    shutil.copy(files[0], odd)
    try:
        assert list_files([odd]) == [str(odd)]
    finally:
        odd.unlink()


def test_a_row_for_each_file_in_each_format(folder, model, recognise):
    wav, flac = folder / "a.wav", folder / "more" / "deep" / "a.FLAC"
    recognizer = EmotionRecognizer.from_hparams(model)
    expected = [
        recognizer.classify_file(path)[0][0].tolist() for path in (wav, flac)
    ]
    out, err, status = recognise(wav, flac, "--format=json")
    assert (err, status) == ("", 0)
    for result, path, values in zip(json.loads(out), (wav, flac), expected):
        assert result["file"] == str(path)
        assert result["probabilities"] == dict(zip(["low", "high"], values))
        assert result["score"] == max(values)
    out, _, _ = recognise(wav, flac, "--format=csv")
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["file", "emotion", "low", "high"]
    assert [row[:2] for row in rows] == [[str(wav), "low"], [str(flac), "high"]]
    np.testing.assert_allclose(
        np.array([row[2:] for row in rows], float), expected, atol=1e-4
    )
    out, _, _ = recognise(wav, flac)
    assert re.match(r"\| file +\| emotion \| low ", out)
    assert out.splitlines()[2].startswith(f"| {wav} ")


def test_segments_in_each_format(folder, model, recognise, tmp_path):
    path = folder / "more" / "long.wav"
    recognizer = EmotionRecognizer.from_hparams(model)
    options = {"window": 3.0, "hop": 1.5, "pause": 0.3, "quiet": 30.0}
    (segments,) = recognizer.diarize_file(path, **options).values()
    typed = [f"--{key}={value}" for key, value in options.items()]
    out, err, status = recognise("--long", *typed, path, "--format=json")
    assert (err, status) == ("", 0)
    assert json.loads(out) == [{"file": str(path), "segments": segments}]
    out, _, _ = recognise(path, "--long", *typed, "--format=csv")
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["file", "start", "end", "emotion", "low", "high"]
    assert [r[3] for r in rows] == ["silence", "low", "high", "silence"]
    assert rows[0][4:] == ["", ""] and float(rows[1][4]) > 0.5
    out, _, _ = recognise(path, "--long", *typed, "--format=rttm")
    lines = [line.split(" ") for line in out.splitlines()]
    assert [line[7] for line in lines] == ["low", "high"]
    for line, segment in zip(lines, segments[1:3]):
        assert len(line) == 10 and line[:3] == ["SPEAKER", "long", "1"]
        assert float(line[3]) == segment["start"]
        assert float(line[4]) == pytest.approx(segment["end"] - float(line[3]))
    out, _, _ = recognise(path, "--long")
    assert re.search(r"^\| \S.*long.wav \| 0.0 +\| \d", out, re.MULTILINE)


def test_what_cannot_be_read_is_named_and_the_rest_is_done(
    folder, recognise, tmp_path
):
    (tmp_path / "text.wav").write_text("no audio" * 99)
    (tmp_path / "empty").mkdir()
    wav = folder / "a.wav"
    for long in ([], ["--long"]):
        for path, says in (
            (tmp_path / "text.wav", "cannot be read as audio"),
            (tmp_path / "empty", "it is a folder"),
            (tmp_path / "gone.wav", "does not exist."),
            (tmp_path / "*.mp3", "does not exist."),
        ):
            out, err, status = recognise(path, wav, *long, "--format=csv")
            assert len(err.splitlines()) == 1 and status == 1
            assert err.startswith(f"error: {path} ") and says in err
            assert all(
                line.startswith(str(wav)) for line in out.splitlines()[1:]
            )
            assert len(out.splitlines()) == 2
        out, err, status = recognise(tmp_path / "text.wav", *long)
        assert (out, status) == ("", 2) and len(err.splitlines()) == 1


def test_jobs_share_the_files_and_say_the_same(folder, recognise, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    files = [tmp_path / "text.wav", folder]
    alone = recognise(*files, "--long", "--format=json")
    assert alone[2] == 1
    assert recognise(*files, "--long", "--format=json", "--jobs=2") == alone


def test_results_go_into_a_file_and_pictures_into_a_folder(
    folder, recognise, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    out, err, status = recognise(
        *(folder, "--long", "--format=rttm", "--output=~/new/calls.rttm"),
        "--figure=~/pictures",
    )
    assert (out, err, status) == ("", "", 0)
    text = (tmp_path / "new" / "calls.rttm").read_text()
    pictures = sorted(p.stem for p in (tmp_path / "pictures").iterdir())
    assert len(pictures) == 3 and "long" in pictures
    # files that are called alike have other names in both
    assert {line.split()[1] for line in text.splitlines()} == {
        picture.replace(" ", "_") for picture in pictures
    }


def test_classes_have_their_colours_in_all_pictures(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(
        timeline, "save_figure", lambda figure, path: figures.append(figure)
    )
    names = ["_a", "$b$", "c"]
    times = {"start": 0.0, "end": 2.0}
    for first in names:
        shares = {name: 0.2 + 0.4 * (name == first) for name in names}
        spoken = {**times, "emotion": first, "probabilities": shares}
        timeline.draw_segments([spoken], "a", tmp_path)
    colours = []
    for figure in figures:
        (axes,) = figure.axes
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [label.strip() for label in labels] == names
        colours.append(
            [bar.patches[0].get_facecolor() for bar in axes.containers]
        )
    assert colours[0] == colours[1] == colours[2]
    assert len(set(colours[0])) == 3
    silent = [{**times, "emotion": "silence"}]
    timeline.draw_segments(silent, "a", tmp_path)
    assert isinstance(figures[-1], Figure)


def test_labels_and_names_are_shown_as_they_are(
    make_model, recognise, tmp_path, write_sound
):
    labels = ["=1+1", "<b>|*x* y\n"]
    model = make_model(labels)
    path = tmp_path / "a|b <i>.wav"
    write_sound(path, ("low", 1), ("", 1), ("high", 2))
    (result,) = json.loads(recognise(path, "--format=json", model=model)[0])
    assert list(result["probabilities"]) == labels
    out, _, _ = recognise(path, "--format=csv", model=model)
    header, row = csv.reader(io.StringIO(out))
    assert header == ["file", "emotion", "'=1+1", labels[1]]
    out, _, _ = recognise(path, "--long", model=model)
    assert len(out.splitlines()) == 5 and r"a\|b \<i>.wav" in out
    assert r"\<b>\|\*x\* y" in out
    out, _, _ = recognise(path, "--long", "--format=rttm", model=model)
    assert {len(line.split()) for line in out.splitlines()} == {10}
    card = (model / "README.md").read_text()
    assert r"# Speech emotion recognition: =1+1, \<b>\|\*x\* y" in card


@pytest.mark.parametrize(
    "options, says",
    [
        ([], "give files, folders or patterns, or else --serve"),
        (["a.wav", "--serve"], "or else --serve"),
        (["a.wav", "--format=rttm"], "--format=rttm is for --long"),
        (["a.wav", "--figure=x"], "--figure is for --long"),
        (["a.wav", "--format=xml"], "invalid choice: 'xml'"),
        (["a.wav", "--jobs=0"], "--jobs=0 must be a whole number of at least"),
        (["a.wav", "--jobs=two"], "invalid int value: 'two'"),
        (["a.wav", "--window=wide"], "invalid float value: 'wide'"),
        (["a.wav", "--what"], "unrecognized arguments: --what; --help says"),
        (["a.wav", "--output=."], "--output=. is a folder: name a file"),
        (["a.wav", "--device=gpu9"], "gpu9"),
        (["a.wav", "--long", "--window=0"], "window=0.0 must be a number"),
        (["a.wav", "--output=$NO/x"], "the variable .NO is not set"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    model, options, says, tmp_path, monkeypatch, write_sound
):
    monkeypatch.chdir(tmp_path)
    write_sound(tmp_path / "a.wav", ("low", 1))
    with pytest.raises(RecipeError, match=says) as error:
        front_door(["recognize", str(model), *options])
    assert len(str(error.value).splitlines()) == 1


def test_there_is_a_bar_on_a_terminal(recognise, folder, monkeypatch):
    made = []

    class Bar(recognize.Bar):
        def __init__(self, *args, **kwargs):
            made.append(kwargs)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(recognize, "Bar", Bar)
    for answer in (False, True):
        monkeypatch.setattr(recognize, "are_bars_shown", answer.__bool__)
        recognise(folder / "a.wav")
    assert [kwargs["disable"] for kwargs in made] == [True, False]
    assert made[0]["total"] == 1


def test_help_says_what_the_commands_take(capsys):
    for command, option in (("recognize", "--long"), ("export", "--onnx")):
        front_door([command, "--help"])
        assert option in capsys.readouterr().out
