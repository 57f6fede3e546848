"""A page on this machine to try a model: record, upload, look at it."""

from pathlib import Path

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.recognize import draw_segments, recognise


def make_page(model, device):
    """Makes the page.

    Arguments
    ---------
    model : str
        A model folder.
    device : str
        Where it runs.

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

    def show(path):
        """Recognises a recording; gives bars, timeline and table."""
        if not path:
            raise gradio.Error("Record something, or give a file.")
        result = recognise(model, device, path)
        segments = recognise(model, device, path, {})
        if "error" in segments:
            raise gradio.Error(segments["error"].replace(path, "The recording"))
        timeline = Path(path).with_suffix(".timeline.png")
        draw_segments({**segments, "file": "timeline"}, timeline)
        rows = [
            [part["start"], part["end"], part["emotion"], part.get("score")]
            for part in segments["segments"]
        ]
        # what is too long to be one utterance has segments only
        return result.get("probabilities"), str(timeline), rows

    with gradio.Blocks(title="Speech emotion recognition") as page:
        gradio.Markdown(
            f"# Speech emotion recognition\n{Path(model).resolve().name}; it "
            "says how speech sounds, not what somebody feels."
        )
        audio = gradio.Audio(
            sources=["microphone", "upload"], type="filepath", label="Speech"
        )
        button = gradio.Button("Recognise", variant="primary")
        label = gradio.Label(label="All of it")
        timeline = gradio.Image(label="Timeline", type="filepath")
        header = ["start", "end", "emotion", "probability"]
        table = gradio.Dataframe(headers=header, label="Segments")
        button.click(show, audio, [label, timeline, table])
    return page


def serve(model, device, port=None):
    """Opens the page, until it is interrupted.

    Arguments
    ---------
    model, device : str
        See :func:`make_page`.
    port : int, optional
        Of this machine; a free one by default.
    """
    # of this machine only, and nothing is sent anywhere
    make_page(model, device).launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        enable_monitoring=False,
    )
