"""The page to try a model, in a browser without a window."""

import shutil
import sys

import pytest

from speechbrain_wap.demo_page import serve
from speechbrain_wap.errors import RecipeError
from speechbrain_wap.inference import EmotionRecognizer

SWITCHES = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync"
SWITCHES += " --disable-background-networking --disable-component-update"
SWITCHES += " --window-size=1100,1300"
SECONDS = 40  # to wait at most: a browser starts slowly on a busy machine


@pytest.fixture(scope="module")
def browser():
    """A browser without a window, where one is installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("there is no chromedriver, with which a page is tried")
    options = webdriver.ChromeOptions()
    for switch in SWITCHES.split():
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page(model):
    """The page of a model that tells high tones from low ones."""
    pytest.importorskip("gradio")
    recognizer = EmotionRecognizer.from_hparams(model)
    page = serve(recognizer, "tones", prevent_thread_lock=True, quiet=True)
    yield page
    page.close()


def upload(browser, page, path):
    """Gives the page a file, and presses the button."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    def wait(find):
        return WebDriverWait(browser, SECONDS).until(find)

    def find(kind):
        return lambda _: browser.find_elements(By.CSS_SELECTOR, kind)

    browser.get(page.local_url)
    wait(find("input[type=file]"))[0].send_keys(str(path))
    wait(find("button[aria-label=Clear]"))
    button = "//button[contains(., 'Recognise')]"
    wait(lambda _: browser.find_elements(By.XPATH, button))[0].click()
    return lambda *texts: wait(
        lambda _: all(
            text in browser.find_element(By.TAG_NAME, "body").text
            for text in texts
        )
    )


def test_a_recording_is_recognised(browser, page, tmp_path, write_sound):
    path = tmp_path / "talk.wav"
    write_sound(path, ("", 1), ("low", 3), ("", 1), ("high", 2), ("", 1))
    shows = upload(browser, page, path)
    shows("low", "high", "silence", "0.9", "tones; it says how speech sounds")
    assert "Use via API" not in browser.page_source
    # nothing but the page itself is asked for anything
    asked = [
        entry["message"]
        for entry in browser.get_log("performance")
        if "Network.requestWillBeSent" in entry["message"]
    ]
    assert asked
    foreign = [a for a in asked if "://fonts." in a or "api.gradio" in a]
    assert foreign == []


def test_real_speech_is_recognised(browser, page, shared):
    path = shared("corpora", "EmoDB", "wav", "03a01Fa.wav")
    upload(browser, page, path)("low", "high", "%", "1.94", "silence")


def test_what_cannot_be_read_is_said_in_a_sentence(browser, page, tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("no audio" * 99)
    upload(browser, page, path)("text.wav cannot be read as audio: ")


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(RecipeError, match=r"pip install 'speechbrain-wap.demo"):
        serve(None, "tones")
