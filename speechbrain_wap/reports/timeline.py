"""A picture of the emotions in a recording over time."""

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from speechbrain_wap.errors import escape_controls
from speechbrain_wap.reports.report import save_figure

COLOURS = style.library["tableau-colorblind10"]["axes.prop_cycle"]


def draw_segments(segments, title, path):
    """Draws a recording's probabilities over time.

    Arguments
    ---------
    segments : list of dict
        What ``EmotionRecognizer.diarize_file`` gives of it.
    title : str
        Its name.
    path : str
        The picture to write.
    """
    figure = Figure(figsize=(9, 2.6))
    axes = figure.subplots()
    axes.set_prop_cycle(COLOURS)  # a class has the same one in all pictures
    spoken = [s for s in segments if "probabilities" in s]
    starts = [s["start"] for s in spoken]
    widths = [s["end"] - s["start"] for s in spoken]
    bottom = np.zeros(len(spoken))
    for name in spoken[0]["probabilities"] if spoken else ():
        heights = [s["probabilities"][name] for s in spoken]
        # the space, for a legend leaves out what begins with "_"
        label = f" {escape_controls(name)}"
        axes.bar(starts, heights, widths, bottom, align="edge", label=label)
        bottom += heights
    axes.set_xlim(0, segments[-1]["end"])
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds")
    axes.set_title(escape_controls(title), fontsize=10)
    if spoken:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    save_figure(figure, path)
