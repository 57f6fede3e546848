"""report.html: it says what the files say, and nothing in them is markup."""

import json
import os
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
from report_folders import CLASSES, make_report_folder
from sklearn.metrics import recall_score

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.evaluation.details import DETAILS
from speechbrain_wap.files import ANY_BYTES, digest_file
from speechbrain_wap.reports.page import _draw_layers, make_page
from speechbrain_wap.reports.report import escape_markdown
from speechbrain_wap.reports.report_command import main, make_reports
from speechbrain_wap.reports.report_facts import read_facts, record_facts

NASTY = "<img src=x onerror=alert(1)>\"&'</script><!--{{ 1 }}"


class Page(HTMLParser):
    """The tags of a page, its text, and its data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.place = [], {}, ""
        self.feed(text)
        self.close()
        self.data = json.loads(self.texts["data"])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.place = dict(attributes).get("id") if tag == "script" else ""

    def handle_data(self, data):
        self.texts[self.place] = self.texts.get(self.place, "") + data


def read_page(folder):
    return Page(make_page(read_facts(folder)))


def test_what_users_wrote_is_text_wherever_it_stands(tmp_path):
    classes = [NASTY, "b", "c"]
    plain = NASTY.replace("{", "{{").replace("}", "}}")
    names = {"name": plain + "{}", "speaker": plain + "{}"}
    note = f"**Optimistic**: {escape_markdown(NASTY)}"
    make_report_folder(
        tmp_path / "mine", classes=classes, notes=[note], **names
    )
    make_report_folder(tmp_path / "plain", notes=["**Optimistic**: b"])
    mine, plain = (read_page(tmp_path / name) for name in ("mine", "plain"))
    counts = [
        [tag for tag, _ in page.tags if tag in ("script", "img", "iframe")]
        for page in (mine, plain)
    ]
    assert counts[0] == counts[1]
    assert not [1 for _, a in mine.tags if any(k.startswith("on") for k in a)]
    assert mine.data["classes"][0] == NASTY
    assert mine.data["id"][0] == NASTY + "0"
    assert mine.data["speakers"] == [f"{NASTY}{n}" for n in range(4)]
    assert NASTY in mine.texts[""]  # the note, the tables


def test_the_page_needs_no_network(tmp_path):
    make_report_folder(tmp_path)
    tags = read_page(tmp_path).tags
    (policy,) = (a["content"] for _, a in tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "*" not in policy
    for tag, attributes in tags:
        for key in ("src", "href", "xlink:href"):
            link = attributes.get(key) or "#"
            assert link[0] == "#" or link in ("data:,", "report.md"), tag


def test_the_page_is_made_again_from_the_files_alone(tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    make_report_folder(first, notes=["one"], wav=f"{first}/{{}}.wav")
    make_reports(first)
    before = {
        name: (first / name).read_bytes()
        for name in ("report.html", "report.md", "classifier_curves.png")
    }
    for name in before:
        (first / name).unlink()
    main([str(first)])
    assert before == {name: (first / name).read_bytes() for name in before}
    # the whole folder may be moved; links to what has stayed are others
    shutil.move(first, moved)
    main([str(moved)])
    assert (moved / "report.md").read_bytes() == before["report.md"]
    with pytest.raises(RecipeError, match="holds no results.json"):
        main([str(tmp_path)])
    assert not (tmp_path / ".lock").exists()


def test_data_are_the_predictions_of_each_seed(tmp_path):
    table = make_report_folder(tmp_path)
    data = read_page(tmp_path).data
    for run in data["runs"]:
        part = table[table["seed"] == run["seed"]].set_index("id")
        for number, key in enumerate(data["id"]):
            row = part.loc[key]
            assert CLASSES[data["label"][number]] == row["label"]
            assert CLASSES[run["predicted"][number]] == row["prediction"]
            assert data["speakers"][data["speaker"][number]] == row["speaker"]
            shares = row[list(range(len(CLASSES)))].to_numpy(float)
            found = np.array(run["probabilities"][number]) / 1000
            assert np.abs(found - shares).max() <= 0.0005 + 1e-9
            place = tmp_path / f"seed{run['seed']}/fold{row['fold']}"
            details = json.loads((place / "classifier" / DETAILS).read_text())
            assert run["attention"][number] == details["attention"][key]


@pytest.mark.parametrize("name", ["a b#1?.wav", "100%20.wav", "\udcff.wav"])
def test_a_link_leads_from_the_page_to_the_recording(tmp_path, name):
    wav = f"{tmp_path}/{name}"
    open(wav, "w").close()
    make_report_folder(tmp_path / "a" / "b", wav=wav)
    links = read_page(tmp_path / "a" / "b").data["wav"]
    path = unquote(links[0], **ANY_BYTES)
    found = os.path.normpath(tmp_path / "a" / "b" / path)
    assert not os.path.isabs(path) and found == wav


def test_groups_are_scored_over_the_classes_that_they_have(tmp_path):
    genders = ["f", "m", "f", ""] * 3
    table = make_report_folder(tmp_path, extra={"gender": genders})
    text = read_page(tmp_path).texts[""]
    for column, value in (("speaker", "s2"), ("session", "2")):
        part = table[table[column] == value]
        recalls = recall_score(
            part["label"],
            part["prediction"],
            labels=sorted(set(part["label"])),
            average="macro",
        )
        assert f"{value}{len(part)}{100 * recalls:.1f}" in text.replace(
            "\n", ""
        )
    assert "Gender" in text and "f12" in text.replace("\n", "")


def test_the_first_screen_has_what_a_reader_must_know(tmp_path):
    notes = ["Encoder x, frozen.", "**Transductive**: it has seen all."]
    make_report_folder(tmp_path, notes=notes)
    page = read_page(tmp_path)
    words = " ".join(page.texts[""].split())
    first = words.partition("Rows are true classes")[0]
    for part in (
        "12 utterances of 4 speakers, 3 classes (angry, sad, neutral)",
        "held out in 2 folds, with 2 seeds. Encoder x, frozen.",
        "UA 50.0 % ± 0.0 over seeds chance33.3 %",
        "linear probe40.0 %",
        "Transductive it has seen all.",
        "1,234,567 trained parameters",
        "16.0 minutes, all runs together",
        "90 MB of memory at most",
    ):
        assert part in first
    warned = [a for tag, a in page.tags if a.get("class") == "warning"]
    assert len(warned) == 1


@pytest.mark.parametrize(
    "chosen, names",
    [("weighted", "0 1 2"), ([4, 2, 9], "4 2 9"), ([1, 2], "0 1 2")],
)
def test_layers_of_the_encoder_have_the_keys_numbers(chosen, names):
    averages = {"backbone.encoder_layer_weights": ([0.2, 0.3, 0.5], [0.0] * 3)}
    (axes,) = _draw_layers(averages, chosen).axes
    assert [one.get_text() for one in axes.get_xticklabels()] == names.split()
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [0.2, 0.3, 0.5]


def test_a_single_run_has_no_spread(tmp_path):
    make_report_folder(tmp_path)
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "runs": results["runs"][:1]}))
    text = read_page(tmp_path).texts[""]
    assert "of one run" in text and "±" not in text


def test_what_is_missing_is_left_out(tmp_path):
    make_report_folder(tmp_path)
    for name in ("predictions.csv", "details.json", "history.json"):
        for path in tmp_path.glob(f"seed7/*/classifier/{name}"):
            path.unlink()
    (tmp_path / "corpus.csv").unlink()
    page = read_page(tmp_path)
    assert [run["seed"] for run in page.data["runs"]] == [8]
    assert set(page.data["wav"]) == {None}
    assert "not recorded" in page.texts[""]
    gone = "Without utterances of fold 1, seed 7; fold 2, seed 7, whose pred"
    assert gone in page.texts[""]
    for path in tmp_path.glob("seed*/*/classifier/*"):
        path.unlink()
    page = read_page(tmp_path)
    assert page.data["runs"] == [] and "UA" in page.texts[""]
    assert "minutes" not in page.texts[""]
    assert "12 utterances, 3 classes" in page.texts[""]


def test_predictions_that_are_not_as_written_are_left_out(tmp_path):
    make_report_folder(tmp_path, seeds=[7])
    place = tmp_path / "seed7" / "fold1" / "classifier"
    path, scores = place / "predictions.csv", place / "scores.json"
    found = json.loads(scores.read_text())
    found["predictions_digest"] = digest_file(path)
    scores.write_text(json.dumps(found))
    assert len(read_page(tmp_path).data["id"]) == 12
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    page = read_page(tmp_path)
    assert len(page.data["id"]) == 6
    assert "Without utterances of fold 1, seed 7, whose" in page.texts[""]


def test_files_that_hold_something_else_are_left_out(tmp_path):
    make_report_folder(tmp_path, seeds=[7])
    place = tmp_path / "seed7" / "fold1" / "classifier"
    for name in ("cost.json", DETAILS):
        (place / name).write_text("[]")
    path = tmp_path / "corpus.csv"
    path.write_text(path.read_text().replace("0.5", "0..5"))
    page = read_page(tmp_path)
    assert "minutes" not in page.texts[""] and set(page.data["wav"]) == {None}


def test_what_is_recorded_does_not_tell_where_the_folder_is(tmp_path):
    records = []
    for name in ("here", "there"):
        make_report_folder(tmp_path / name)
        records.append((tmp_path / name / "report.json").read_text())
    assert records[0] == records[1]


def test_stages_that_lie_side_by_side_may_be_moved(tmp_path):
    root = tmp_path / "out"
    make_report_folder(root / "system", seeds=[7])
    before = read_facts(root / "system")
    for fold in (1, 2):
        place = root / "system" / "seed7" / f"fold{fold}" / "adapter"
        place.rename(root / f"adapter{fold}")
    results = json.loads((root / "system" / "results.json").read_text())
    places = root / "system" / "seed7"
    classifiers, adapters = (
        {f"fold {f}, seed 7": Path(str(place).format(f)) for f in (1, 2)}
        for place in (places / "fold{}" / "classifier", root / "adapter{}")
    )
    record_facts(root / "system", results, adapters, classifiers, [], {})
    alone = (root / "system").rename(tmp_path / "alone")
    assert read_facts(alone).costs == before.costs
    alone.rename(root / "system")
    moved = root.rename(tmp_path / "moved")
    assert read_facts(moved / "system").costs == before.costs
    # what is not there has no cost, rather than a part of it
    shutil.rmtree(moved / "adapter1")
    costs = read_facts(moved / "system").costs
    assert costs[0]["minutes"] is costs[0]["peak_memory_mb"] is None


def test_of_a_cut_utterance_what_is_heard_is_played(tmp_path):
    make_report_folder(tmp_path, seeds=[7], extra={"start": 2.0, "end": 9.0})
    path = tmp_path / "seed7" / "fold1" / "classifier" / DETAILS
    details = json.loads(path.read_text())
    path.write_text(json.dumps({**details, "heard_end": {"u4": 3.5}}))
    data = read_page(tmp_path).data
    assert data["cut"] == [4]
    assert [data["end"][n] for n in (3, 4, 5)] == [9.0, 3.5, 9.0]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The folder of a corpus with ten thousand utterances."""
    folder = tmp_path_factory.mktemp("large")
    names = {
        "name": "Ses01F_impro01_F{:05d}",
        "wav": "/data/IEMOCAP_full_release/Session1/sentences/wav/"
        "Ses01F_impro01/Ses01F_impro01_F{:05d}.wav",
    }
    make_report_folder(folder, 10_000, seeds=[7], **names)
    make_reports(folder)
    return folder


def test_ten_thousand_utterances_are_below_ten_megabytes(large):
    assert (large / "report.html").stat().st_size < 10e6


# In a browser -----------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(paths[1])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def open_page(browser, folder, width=1400, scheme="light"):
    """Opens a page and gives a function that asks it."""
    size = {"width": width, "height": 900}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {**size, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get_log("browser")  # empties it of what another page said
    browser.get(f"file://{folder}/report.html")
    return lambda code: browser.execute_script(f"return {code}")


def wait_until(condition, seconds=10):
    """Waits for what a page does in its own time."""
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def set_filters(ask, **values):
    """Sets filters as a user does."""
    for name, value in values.items():
        ask(
            f"void (document.querySelector('[name={name}]').value = '{value}', "
            "document.querySelector('#filters')"
            ".dispatchEvent(new Event('input')))"
        )


def list_column(ask, number):
    """Reads a column of the rows that are shown."""
    return ask(
        "[...document.querySelectorAll('#rows tbody tr')]"
        f".map(row => row.children[{number}].textContent)"
    )


@pytest.mark.parametrize("length", [1, 300])
def test_a_page_opens_without_error_at_any_width(browser, tmp_path, length):
    names = [letter * length for letter in "asnu"]
    make_report_folder(
        tmp_path,
        classes=names[:3],
        name=names[3] + "{}",
        speaker=names[3] + "{}",
        notes=[escape_markdown(NASTY), escape_markdown(names[0])],
    )
    make_reports(tmp_path)
    backs = set()
    for width in (400, 1400):
        for scheme in ("light", "dark"):
            ask = open_page(browser, tmp_path, width, scheme)
            assert browser.get_log("browser") == []
            assert ask("document.documentElement.scrollWidth") <= width
            assert len(list_column(ask, 1)) > 0
            backs.add(ask("getComputedStyle(document.body).backgroundColor"))
    assert len(backs) == 2


def test_utterances_are_filtered_and_sorted(browser, tmp_path):
    table = make_report_folder(tmp_path)
    make_reports(tmp_path)
    ask = open_page(browser, tmp_path)
    one = table[table["seed"] == 8]
    set_filters(ask, result="", run=1)
    ask("document.querySelector('[data-sort=id]').click()")
    assert list_column(ask, 1) == [f"u{n}" for n in range(12)]
    set_filters(ask, speaker=2)
    assert set(list_column(ask, 2)) == {"s2"} and len(list_column(ask, 1)) == 3
    set_filters(ask, speaker="", label=1)
    wanted = one[one["label"] == "sad"]["id"].tolist()
    assert list_column(ask, 1) == sorted(wanted, key=lambda x: int(x[1:]))
    set_filters(ask, label="", least=60)
    confidence = one[[0, 1, 2]].max(axis=1).to_numpy()
    assert len(list_column(ask, 1)) == (confidence >= 0.6).sum()
    set_filters(ask, most="")
    assert len(list_column(ask, 1)) == (confidence >= 0.6).sum()
    set_filters(ask, least=0, most=100, predicted=2)
    assert len(list_column(ask, 1)) == (one["prediction"] == "neutral").sum()
    # a cell of the confusion matrix shows its utterances
    ask("document.querySelector('.confusion [data-label]').click()")
    assert ask("document.activeElement.name") == "result"
    is_right = (one["label"] == "angry") & (one["prediction"] == "angry")
    assert sorted(list_column(ask, 1)) == sorted(one[is_right]["id"])
    set_filters(ask, label="", predicted="")
    sort = "document.querySelector('[data-sort=confidence]')"
    ask(f"{sort}.click()")
    found = [float(cell[:-2]) for cell in list_column(ask, 5)]
    assert found == sorted(found, reverse=True) and len(found) == 12
    assert ask(f"{sort}.parentElement.ariaSort") == "descending"
    # by keyboard, too
    ask(f"{sort}.focus()")
    browser.switch_to.active_element.send_keys("\n")
    assert ask(f"{sort}.parentElement.ariaSort") == "ascending"


def test_a_cell_of_the_confusion_shows_its_utterances(browser, tmp_path):
    make_report_folder(tmp_path, 60, seeds=[7])
    path = tmp_path / "seed7" / "fold1" / "classifier" / DETAILS
    details = json.loads(path.read_text())
    path.write_text(json.dumps({**details, "heard_end": {"u0": 0.4}}))
    make_reports(tmp_path)
    ask = open_page(browser, tmp_path)
    for number in range(9):
        # whatever else was chosen before
        set_filters(ask, speaker=0, least=90, result="right")
        cell = f"document.querySelectorAll('.confusion button')[{number}]"
        ask(f"void {cell}.click()")
        count = ask(f"{cell}.firstChild.textContent")
        shown = ask("document.querySelector('#count').textContent")
        assert shown == f"{count} of 60 utterances"
    set_filters(ask, label="", predicted="", speaker=0)
    ask("void document.querySelector('[data-sort=id]').click()")
    assert list_column(ask, 6)[0] == "0.50 s first 0.4 s used"


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_part_of_a_recording_plays_alone(browser, tmp_path, is_seen):
    wav = str(tmp_path / "a b#1.wav")
    soundfile.write(wav, np.zeros(5 * 16000), 16000)
    times = {"start": [2.0] * 12, "end": [2.5] * 12}
    make_report_folder(tmp_path, wav=wav, extra=times)
    make_reports(tmp_path)
    ask = open_page(browser, tmp_path)
    browser.execute_script(
        "window.heard = []; const play = Audio.prototype.play;"
        "Audio.prototype.play = function () { window.audio = this; "
        "this.addEventListener('timeupdate', "
        "() => heard.push(this.currentTime)); return play.call(this); };"
    )
    if not is_seen:  # nothing is drawn in another tab
        ask("void (window.requestAnimationFrame = () => 0)")
    browser.find_element("css selector", ".play").click()
    wait_until(lambda: ask("window.audio && !window.audio.paused"))
    wait_until(lambda: ask("window.audio.paused"))
    heard = ask("window.heard")
    # the file goes on to 5 s; unseen, the browser looks four times a second
    assert min(heard) >= 2.0 and 2.4 < max(heard) < (2.8 if is_seen else 4.0)
    assert browser.get_log("browser") == []
    os.remove(wav)
    open_page(browser, tmp_path)
    browser.find_element("css selector", ".play").click()
    message = "document.querySelector('.message')?.textContent"
    wait_until(lambda: "is gone" in (ask(message) or ""))


def test_ten_thousand_utterances_are_filtered_at_once(browser, large):
    ask = open_page(browser, large)
    slowest = ask(
        """(() => {
        const form = document.querySelector('#filters'), times = [];
        const measure = (change) => {
            const start = performance.now();
            change();
            document.body.getBoundingClientRect();
            times.push(performance.now() - start);
        };
        const filter = () => form.dispatchEvent(new Event('input'));
        form.result.value = '';
        measure(filter);
        for (const button of document.querySelectorAll('[data-sort]'))
            measure(() => button.click());
        form.speaker.value = 1;
        measure(filter);
        times.sort((a, b) => a - b);
        return times[times.length >> 1];
        })()"""
    )
    # the median: other processes have the processor, too
    assert slowest < 200
