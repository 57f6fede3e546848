"""A page on this machine to try a model: record, upload, look at it."""

from contextlib import suppress
from functools import partial
from pathlib import Path

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.reports.timeline import draw_segments


def make_page(recognizer, name):
    """Makes the page.

    Arguments
    ---------
    recognizer : speechbrain_wap.inference.EmotionRecognizer
        The model.
    name : str
        What it is called.

    Returns
    -------
    page : gradio.Blocks

    Raises
    ------
    RecipeError
        If Gradio is not installed.
    """
    try:
        import gradio
    except ImportError:
        raise RecipeError(
            "--serve needs gradio: pip install 'speechbrain-wap[demo]'."
        )

    refuse = partial(gradio.Error, print_exception=False)

    def show(path):
        """Recognises a recording; gives bars, timeline and table."""
        if not path:
            raise refuse("Record something, or give a file.")
        bars = None  # what is too long to be one utterance has segments only
        try:
            (segments,) = recognizer.diarize_file(path).values()
            with suppress(RecipeError):
                probabilities = recognizer.classify_file(path)[0][0].tolist()
                bars = dict(zip(recognizer.classes, probabilities))
        except RecipeError as error:
            place = f"{Path(path).parent}/"  # gradio's own
            raise refuse(str(error).replace(place, ""))
        timeline = Path(path).with_suffix(".timeline.png")
        draw_segments(segments, Path(path).name, timeline)
        rows = [
            [part["start"], part["end"], part["emotion"], part.get("score")]
            for part in segments
        ]
        return bars, str(timeline), rows

    # nothing is sent anywhere
    title = "Speech emotion recognition"
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(
            f"# {title}\n{name}; it says how speech sounds, not what somebody "
            "feels."
        )
        audio = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Speech",
            buttons=["download"],
        )
        button = gradio.Button("Recognise", variant="primary")
        label = gradio.Label(label="All of it")
        timeline = gradio.Image(
            label="Timeline",
            interactive=False,
            buttons=["download", "fullscreen"],
        )
        header = ["start", "end", "emotion", "probability"]
        table = gradio.Dataframe(
            headers=header, label="Segments", interactive=False
        )
        button.click(show, audio, [label, timeline, table])
    return page


def serve(recognizer, name, **options):
    """Opens the page, on this machine only, until it is interrupted.

    Arguments
    ---------
    recognizer, name
        See :func:`make_page`.
    **options : dict
        Further ones of Gradio's ``launch``.

    Returns
    -------
    page : gradio.Blocks
    """
    page = make_page(recognizer, name)
    page.launch(
        server_name="127.0.0.1",
        share=False,
        enable_monitoring=False,
        footer_links=[],
        **options,
    )
    return page
