"""benchmarks/adapter_study.py: who is left out, and what the table says."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import soundfile

from speechbrain_wap.errors import RecipeError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PAIRS = ["EB0_KS0", "IC0_SM0", "MK0_TP0"]
SYSTEMS = ["linear probe", "without adapter training", "with adapter training"]


@pytest.fixture
def study(monkeypatch):
    """benchmarks/adapter_study.py."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import adapter_study

    return adapter_study


@pytest.fixture
def show(study, tmp_path, capsys):
    """Lists the commands of a table on corpora that have been read before."""
    nemo = [(speaker, speaker) for speaker in study.SPEAKERS]
    small = [(f"s{n}", f"{n}") for n in range(1, 6)]
    known = {"nemo": nemo, "emodb": small, "ravdess": small, "wild": small}
    for name, speakers in known.items():
        rows = [
            {
                "id": f"{name}{speaker}{number}",
                "wav": "none.wav",
                "duration": 360.0,
                "speaker": f"{name}{speaker}" if name == "wild" else speaker,
                "session": session,
                "emo": "anger",
            }
            for speaker, session in speakers
            for number in range(4)
        ]
        path = tmp_path / "tables" / name / "corpus.csv"
        path.parent.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(path, index=False)

    def run(table, *options, runs=("--print",)):
        usual = ["--encoder=fbank", f"--output={tmp_path}", *runs]
        study.main([table, *usual, *options])
        return capsys.readouterr().out.splitlines()

    return run


def read_speakers(tmp_path, name):
    return set(pd.read_csv(tmp_path / "tables" / name)["speaker"])


def test_an_adapter_of_table_1_hears_neither_speaker_that_it_serves(
    show, study, tmp_path
):
    lines = show("paper", "--seeds=1,2")
    trained = [line for line in lines if "train_adapter.py" in line]
    compared = [line for line in lines if "compare" in line]
    assert len(trained) == 6 and len(compared) == 3
    for pair in study.PAIRS:
        heard = read_speakers(tmp_path, f"nemo/without_{'_'.join(pair)}.csv")
        assert heard == set(study.SPEAKERS) - set(pair)
    # EB0 and KS0 are the first and the fourth; 28 utterances are one step
    for name, folds, line in zip(PAIRS, ("1,4", "2,7", "5,8"), compared):
        assert f" --folds={folds} " in line
        adapter = f"{tmp_path}/paper_layer_last_width_128/{name}/adapter_"
        assert f"--adapter_folder={adapter}{{seed}}" in line
        assert " --classifier.number_of_epochs=12 " in line
        own = [one for one in trained if f"--output_folder={adapter}" in one]
        assert len(own) == 2
        assert all(f"/nemo/without_{name}.csv " in one for one in own)
    assert all("--number_of_epochs=3000)" in line for line in trained)


def test_one_pair_of_table_1_may_be_run_by_itself(show):
    one = show("paper", "--pairs", "MK0_TP0", "--width=384")
    assert len(one) == 2 and all("MK0_TP0" in line for line in one)
    assert all("--d_model" not in line for line in one)


def test_the_universal_adapter_hears_no_judge_of_any_corpus(show, tmp_path):
    lines = show("universal")
    heard = read_speakers(tmp_path, "wild/speech_all.csv")
    assert heard == {
        *("KD0", "MP0", "WR0", "s4", "s5"),
        *(f"wilds{n}" for n in range(1, 6)),
    }
    ids = {
        name: set(
            pd.read_csv(tmp_path / f"tables/wild/speech_{name}.csv")["id"]
        )
        for name in ("0.3h", "1h", "3h", "all")
    }
    assert ids["0.3h"] < ids["1h"] < ids["3h"] < ids["all"]
    assert [len(ids[name]) for name in ("0.3h", "1h", "3h")] == [3, 10, 30]
    # from scratch once, with the adapter of all speech
    assert sum("compare" in line for line in lines) == 3
    hours = {"0.3h": 3000, "1h": 3000, "3h": 1500, "all": 1000}
    for name, epochs in hours.items():
        adapter = f"{tmp_path}/universal_layer_last/adapters/{name}_"
        (trained,) = [x for x in lines if f"--output_folder={adapter}" in x]
        assert f"/wild/speech_{name}.csv " in trained
        assert f"--number_of_epochs={epochs} " in trained
        tuned = [x for x in lines if f"--adapter_folder={adapter}" in x]
        folds = [re.search("--folds=([0-9,]+)", line)[1] for line in tuned]
        shares = 1 if name == "all" else 2
        assert folds == [
            *["1,2,4,5,7,8"] * shares,
            *["1,2,3"] * 2 * shares,
        ]


def test_the_hours_of_the_universal_adapter_are_those_of_its_speech(
    show, study, monkeypatch
):
    chains = []
    monkeypatch.setattr(study, "run_all", lambda some, _: chains.extend(some))
    with pytest.raises(RecipeError, match="not complete"):
        show("universal", runs=())
    hours = [{hours for *_, hours in chain.results} for chain in chains]
    # 3 of nEMO, 2 each of EmoDB and RAVDESS, 5 in the wild: of 24 minutes
    assert hours == [{0.3}, {1.0}, {3.0}, {4.8}]


def test_the_speech_in_the_wild_is_a_file_a_speaker(study, tmp_path):
    folder = tmp_path / "wild"
    for name in ("House/help-1", "House/background-1", "Metro/help-1"):
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, [0.1, -0.1] * 8000, 16000)
    csv = tmp_path / "corpus.csv"
    study.prepare_wild(folder, csv, tmp_path / "index.csv")
    table = pd.read_csv(csv, keep_default_na=False)
    assert [*table["id"]] == ["House_help-1", "Metro_help-1"]
    assert [*table["speaker"]] == [*table["id"]] and not any(table["emo"])
    with pytest.raises(RecipeError, match="--wild=.*/House has no folder"):
        study.prepare_wild(folder / "House", csv, tmp_path / "index.csv")


def write_results(folder, fold, without, gain, seeds):
    """Writes what `compare` does of one fold, at all labels."""
    folder.mkdir(parents=True, exist_ok=True)
    systems = []
    for name, score in zip(SYSTEMS, (0.5, without, without + gain)):
        runs = [
            {"fold": fold, "session": str(fold), "seed": seed, "UA": score}
            for seed in range(seeds)
        ]
        systems.append({"system": name, "label_fraction": 1.0, "runs": runs})
    text = json.dumps({"systems": systems})
    (folder / "comparison.json").write_text(text, "utf-8")


def test_the_table_pairs_folds_and_not_seeds(study, tmp_path):
    chains = []
    for fold in range(1, 7):
        folder = tmp_path / str(fold)
        write_results(folder, fold, 0.5 + fold / 100, fold / 500, seeds=3)
        chains.append(study.Chain(folder, [], [(folder, "nEMO", None)]))
    chains.append(study.Chain(tmp_path, [], [(tmp_path / "no", "nEMO", None)]))
    rows = study.collect(chains, known=[])
    assert len(rows) == 6 * 3 * 3
    line = study.tabulate(rows).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:7] == ["nEMO", "100 %", "3", "6", "50.0", "53.5", "54.2"]
    less = rows[(rows["fold"] > 1) | (rows["seed"] == 0)]
    assert "| 1 to 3 |" in study.tabulate(less)
    # a run that the other system lacks, or of a speaker that it lacks, is none
    odd = {"corpus": "nEMO", "labels": 1.0, "fold": 7, "session": "7"}
    odd = [{**odd, "seed": 0, "system": SYSTEMS[1], "UA": 0.0}]
    odd.append({**odd[0], "fold": 1, "session": "1", "seed": 9})
    more = pd.concat([rows, pd.DataFrame(odd)], ignore_index=True)
    assert study.tabulate(more) == study.tabulate(rows)
    # all six are better: two of 64 signs
    assert cells[7] == "+0.7" and cells[9] == "0.031"


def test_the_figures_are_over_labels_or_over_hours(study, monkeypatch):
    rows = [
        {"corpus": "nEMO", "labels": labels, "hours": hours, "seed": 1}
        | {"system": system, "session": speaker, "fold": 1, "UA": ua}
        for speaker, more in (("EB0", 0.0), ("KS0", 0.1))
        for labels, system, hours, ua in (
            *((0.1, SYSTEMS[1], None, 0.5), (1.0, SYSTEMS[1], None, 0.6)),
            *((0.1, SYSTEMS[2], 1.0, 0.7), (0.1, SYSTEMS[2], 3.0, 0.8)),
        )
        for ua in [ua + more]
    ]
    rows, drawn = pd.DataFrame(rows), []
    monkeypatch.setattr(study, "save_figure", lambda one, _: drawn.append(one))
    study.draw(rows, None)
    study.draw(rows.assign(hours=float("nan")), None)
    by_hours, by_labels = (
        {
            bars.get_label(): bars.lines[0].get_xydata().round(6).tolist()
            for bars in figure.axes[0].containers
        }
        for figure in drawn
    )
    assert by_hours == {SYSTEMS[2]: [[1.0, 75.0], [3.0, 85.0]]}
    assert by_labels[SYSTEMS[1]] == [[0.1, 55.0], [1.0, 65.0]]
    assert [f.axes[0].get_xlabel() for f in drawn] == [
        *("hours of stage 1", "share of the labels")
    ]


def test_what_was_run_elsewhere_counts_once(study, tmp_path):
    chain = study.Chain(tmp_path, [], [(tmp_path, "nEMO", None)])
    known = tmp_path / "known.csv"
    write_results(tmp_path, 1, 0.5, 0.6, seeds=2)
    there = study.collect([chain], known=[])
    there.dropna(axis="columns", how="all").to_csv(known, index=False)
    write_results(tmp_path, 1, 0.5, 0.6, seeds=3)
    everything = study.collect([chain], known=[])
    both = study.collect([chain], known=[study.read_known(known)])
    pd.testing.assert_frame_equal(both, everything)
    nothing = study.Chain(tmp_path, [], [(tmp_path / "no", "nEMO", None)])
    again = study.collect([nothing], known=[study.read_known(known)])
    pd.testing.assert_frame_equal(again, there)


def test_a_table_that_is_none_is_named_before_anything_is_run(show, tmp_path):
    with pytest.raises(RecipeError, match="--known=no.csv cannot be read"):
        show("small", "--known=no.csv")
    other = tmp_path / "other.csv"
    other.write_text("corpus,system\n")
    with pytest.raises(RecipeError, match="no column UA, fold, labels, seed"):
        show("small", f"--known={other}")


def test_what_has_nothing_to_be_compared_with_yet_is_no_line(study, tmp_path):
    runs = [{"fold": 1, "session": "1", "seed": 1, "UA": 0.5}]
    tuned = {"settings": {"classifier.label_fraction": 0.1}, "runs": runs}
    (tmp_path / "results.json").write_text(json.dumps(tuned), "utf-8")
    chain = study.Chain(tmp_path, [], [(tmp_path, "nEMO", 1.0)])
    rows = study.collect([chain], known=[])
    assert len(rows) == 1
    assert len(study.tabulate(rows).splitlines()) == 2  # the header's
    study.draw(rows, tmp_path / "figure.png")


def test_a_relative_encoder_is_found_from_the_recipes_folders(
    show, tmp_path, monkeypatch
):
    (tmp_path / "whisper").mkdir()
    monkeypatch.chdir(tmp_path)
    lines = show("paper", "--encoder=whisper")
    assert all(f"--encoder_source={tmp_path}/whisper " in x for x in lines)


def test_a_corpus_that_is_not_told_is_named(show, tmp_path):
    for name in ("wild", "emodb"):
        (tmp_path / f"tables/{name}/corpus.csv").unlink()
        with pytest.raises(RecipeError, match=f"--{name}=/path/to/"):
            show("universal")
        with pytest.raises(RecipeError, match="/nowhere"):
            show("universal", f"--{name}=/nowhere")


def test_folds_are_numbered_by_all_nine_speakers(show, tmp_path):
    path = tmp_path / "tables/nemo/corpus.csv"
    table = pd.read_csv(path)
    table[table["speaker"] != "KD0"].to_csv(path, index=False)
    with pytest.raises(RecipeError, match="has not the nine speakers EB0"):
        show("recipe")


def test_settings_are_chosen_on_the_speakers_that_do_not_judge(
    study, show, tmp_path
):
    judging = show("recipe")
    lever = "--levers=--adapter.lr=1"
    stage_1, stage_2 = show("recipe", "--speakers=choosing", lever)
    folds = re.findall("--folds=(.)", " ".join(judging))
    assert folds == [*"124578"]
    assert "--folds=3,6,9 " in stage_2
    # the adapter of those who choose has heard none of them
    speech = tmp_path / "tables/nemo/without_KD0_MP0_WR0.csv"
    assert f"--corpora={speech} " in stage_1
    assert {*pd.read_csv(speech)["speaker"]} == {
        study.SPEAKERS[fold - 1] for fold in study.JUDGING["nEMO"]
    }
    folder = f"{tmp_path}/recipe_layer_last_choosing_adapter.lr=1/KD0_MP0_WR0"
    assert f"--output_folder={folder}/adapter_1 --lr=1)" in stage_1
    assert stage_2.endswith(f"--adapter_folder={folder}/adapter_{{seed}}')")
    # neither goes where the other lies
    assert all(f"{tmp_path}/recipe_layer_last/" in line for line in judging)


@pytest.mark.parametrize(
    "options",
    [
        ("paper", "--speakers=choosing"),
        ("small", "--levers=--lr=1"),
        ("recipe", "--width=384"),
    ],
)
def test_an_option_of_another_table_is_refused(show, options):
    with pytest.raises(SystemExit):
        show(*options)


def test_what_is_handed_on_counts_most_and_where_it_belongs(show):
    options = ["--adapter.probe_every=5", "--classifier.lr=2", "--lr=1"]
    trained, *_, compared = show("paper", "--", *options)
    assert trained.endswith(" --probe_every=5 --lr=1)")
    # which refuses keys of a stage that is over
    assert compared.endswith(" --classifier.lr=2 --lr=1)")


def test_a_failed_command_ends_its_chain_and_no_other(study, tmp_path, capsys):
    fine = tmp_path / "fine.txt"
    write = ["-c", f"open({str(fine)!r}, 'w').close()"]
    fails = ["-c", "raise SystemExit(3)"]
    chains = [
        study.Chain(tmp_path / "a", [("nEMO", fails), ("nEMO", write)], []),
        study.Chain(tmp_path / "b", [("nEMO", write)], []),
    ]
    assert not study.run_all(chains, jobs=1)
    assert fine.is_file()
    said = capsys.readouterr().out
    assert "command 1 of 2 failed, see" in said and "command 2 of 2" not in said
