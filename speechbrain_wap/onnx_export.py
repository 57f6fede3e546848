"""Exports an emotion model to ONNX, and checks it against PyTorch."""

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch

from speechbrain_wap.errors import RecipeError, first_line

LARGEST_ERROR = 1e-4  # of logits by ONNX Runtime against PyTorch's


def check_onnx(run):
    """Refuses what cannot be exported to ONNX here.

    Arguments
    ---------
    run : TrainedRun
        What is to be exported.

    Returns
    -------
    onnxruntime : module

    Raises
    ------
    RecipeError
        If the system takes several streams, or a package is missing.
    """
    if "" not in run.caches:
        raise RecipeError(
            "--onnx: a system that takes several streams of features is not "
            "supported."
        )
    try:
        import onnxruntime
        import onnxscript  # which torch needs
    except ImportError as error:
        raise RecipeError(
            f"--onnx needs {error.name}: pip install 'speechbrain-wap[onnx]'."
        )
    return onnxscript and onnxruntime


@contextmanager
def _silence():
    """Keeps to itself what torch says while it exports, pages of it."""
    nowhere = io.StringIO()
    logging.disable()
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def export_onnx(model, run, path):
    """Writes a model for ONNX Runtime, frames and relative lengths to logits.

    Arguments
    ---------
    model : torch.nn.Module
        In eval mode.
    run : TrainedRun
        Where it comes from.
    path : pathlib.Path
        The file to write.

    Raises
    ------
    RecipeError
        If a package is missing, or the system cannot be exported.
    """
    onnxruntime = check_onnx(run)
    system = type(model).__name__
    batch = torch.export.Dim("batch", min=1, max=1024)
    frames = torch.export.Dim("frames", min=1, max=run.settings["max_frames"])
    try:
        with _silence():
            program = torch.onnx.export(
                model,
                run.draw_frames(3, 20)[:2],
                dynamo=True,
                input_names=["feats", "lens"],
                output_names=["logits"],
                dynamic_shapes=({0: batch, 1: frames}, {0: batch}),
                verbose=False,
            )
    except Exception as error:  # of any system
        raise RecipeError(
            f"--onnx: {system} cannot be exported: "
            f"{first_line(error.__cause__ or error)}"
        )
    program.save(path)
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    for size in ((1, 1), (1, 57), (5, 31)):
        feats, lens, _ = run.draw_frames(*size)
        given = {"feats": feats.numpy(), "lens": lens.numpy()}
        (logits,) = session.run(None, given)
        with torch.no_grad():
            expected = model(feats, lens)
        error = float((torch.from_numpy(logits) - expected).abs().max())
        if not error <= LARGEST_ERROR:
            path.unlink()
            raise RecipeError(
                f"--onnx: {system} gives other logits in ONNX Runtime, by up "
                f"to {error:.1e} (batch {size[0]}, {size[1]} frames)."
            )
