"""What SpeechBrain's checkpoints lack for a resumed run to equal another.

A checkpoint here is complete or not there, says of each of its files what it
should hold, and has the random states of all ranks and the statistics of the
epochs so far.
"""

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import yaml
from speechbrain.utils import checkpoints as sb_checkpoints
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.logger import get_logger

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.ranks import gather_over_ranks, own_rank

logger = get_logger(__name__)

METAFILE = sb_checkpoints.METAFNAME
PARTIAL = f"{METAFILE}.partial"  # its name while the other files are written
# What the others of a checkpoint hold; the meta file is read far more often
FILES = "files.json"
# For what has to hear of all ranks before the main process writes it.
saved_by_all_ranks = partial(
    sb_checkpoints.register_checkpoint_hooks, save_on_main_only=False
)


def _measure_file(path):
    """Gives a file's size and CRC-32."""
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]


def _is_cut(path):
    """Tells whether a full disk has cut a file; torch 2.9 does not say so."""
    if path.stat().st_size == 0:
        return True
    with open(path, "rb") as file:  # torch.save writes a zip archive
        return file.read(2) == b"PK" and not zipfile.is_zipfile(path)


def _find_damage(checkpoint):
    """Finds the first file that is not as it was written; None: all are."""
    path = checkpoint.path / FILES
    try:
        for name, expected in json.loads(path.read_text("utf-8")).items():
            path = checkpoint.path / name
            if _measure_file(path) != expected:
                return path
    except (OSError, ValueError, AttributeError):
        return path
    return None


class Checkpointer(sb_checkpoints.Checkpointer):
    """SpeechBrain's checkpointer, for runs that are killed at any moment.

    SpeechBrain takes a folder for a checkpoint once its meta file exists, and
    writes that file first; here it gets its name last, and describes the
    others. A damaged checkpoint is not used, but the one before it. Ranks on
    nodes that do not see the folder get the main process's checkpoint.

    Attributes
    ----------
    batch_size : int or None
        Of all ranks; an interrupted epoch goes on with the same batches only.
    """

    batch_size = None

    def _save_checkpoint_metafile(self, fpath, *args, **kwargs):
        path = fpath.with_name(PARTIAL)
        return super()._save_checkpoint_metafile(path, *args, **kwargs)

    def save_checkpoint(self, meta=None, **kwargs):
        """Saves a checkpoint and makes it visible in the end.

        Arguments
        ---------
        meta : dict, optional
            What else its meta file holds, such as the epoch.
        **kwargs : dict
            Further arguments of SpeechBrain's method.

        Returns
        -------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint or None
            None on other ranks than the main one.

        Raises
        ------
        RecipeError
            If it cannot be written.
        """
        meta = {**(meta or {}), "batch_size": self.batch_size}
        try:
            checkpoint = super().save_checkpoint(meta=meta, **kwargs)
            if if_main_process():
                self._show(checkpoint)
        except (OSError, RuntimeError) as error:  # torch.save raises either
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(
                f"no checkpoint can be saved in {self.checkpoints_dir} "
                f"({reason}): the last one is kept; make room and run the "
                "same command again."
            )
        ddp_barrier()  # before another rank looks for the newest one
        return checkpoint

    def _show(self, checkpoint):
        """Makes a written checkpoint visible, and removes what is none."""
        paths = sorted(checkpoint.paramfiles.values())
        for path in filter(_is_cut, paths):
            raise OSError(f"{path} could not be written to its end")
        files = {path.name: _measure_file(path) for path in paths}
        (checkpoint.path / FILES).write_text(json.dumps(files), "utf-8")
        os.replace(checkpoint.path / PARTIAL, checkpoint.path / METAFILE)
        for left in self.checkpoints_dir.glob("CKPT*"):
            if not (left / METAFILE).is_file():  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)

    def delete_checkpoints(
        self, *, importance_keys=(sb_checkpoints.ckpt_recency,), **kwargs
    ):
        """Deletes all checkpoints but the most important ones.

        The main process alone decides: ranks that list the folder at other
        moments would wait for different numbers of deletions.
        """
        # SpeechBrain 1.1 appends the same key to one list at every saving
        kwargs["importance_keys"] = list(dict.fromkeys(importance_keys))
        run_on_main(super().delete_checkpoints, kwargs=kwargs)

    def list_checkpoints(self):
        """Lists the checkpoints whose meta file can be read.

        Returns
        -------
        checkpoints : list of speechbrain.utils.checkpoints.Checkpoint
        """
        checkpoints = []
        for folder in self._list_checkpoint_dirs():
            try:
                (checkpoint,) = self._construct_checkpoint_objects([folder])
                checkpoint.meta["unixtime"], checkpoint.meta["end-of-epoch"]
                checkpoints.append(checkpoint)
            except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
                logger.warning(f"{folder} is no whole checkpoint: left out.")
        return checkpoints

    def find_checkpoint(self, *args, **kwargs):
        """Picks the newest or best checkpoint, if it is as it was written.

        Arguments
        ---------
        *args, **kwargs
            As of SpeechBrain's method: importance_key, max_key, min_key,
            ckpt_predicate.

        Returns
        -------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint or None
            The main process's choice; None where there is none at all.

        Raises
        ------
        RecipeError
            If all are damaged, or the best one is.
        """
        return run_on_main(self._find_whole, args, kwargs)

    def _find_whole(
        self, importance_key=None, max_key=None, min_key=None, predicate=None
    ):
        """Picks a checkpoint on the main process."""

        def may_resume(checkpoint):
            """Within an epoch, only the same batches can be gone on with."""
            size = checkpoint.meta.get("batch_size")
            return (predicate is None or predicate(checkpoint)) and (
                checkpoint.meta["end-of-epoch"]
                or self.batch_size in (None, size)
            )

        found = self.find_checkpoints(
            importance_key, max_key, min_key, may_resume
        )
        for checkpoint in found:
            damaged = _find_damage(checkpoint)
            if damaged is None:
                return checkpoint
            if max_key or min_key:  # the best one has no substitute
                break
            logger.warning(
                f"{damaged} is damaged: the checkpoint before it is used, and "
                "what came after is computed again."
            )
        if found:
            raise RecipeError(
                f"{damaged} is damaged and no other checkpoint can take its "
                f"place: delete {self.checkpoints_dir} to train anew."
            )
        return None

    def load_checkpoint(self, checkpoint):
        """Loads a checkpoint that the main process sees on all ranks.

        Arguments
        ---------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint
            The checkpoint.
        """
        with self._within_reach(checkpoint) as reached:
            super().load_checkpoint(reached)

    @contextmanager
    def _within_reach(self, checkpoint):
        """Sends a checkpoint to nodes that do not share the main's disk."""
        is_here = (checkpoint.path / METAFILE).is_file()
        if all(gather_over_ranks(is_here)):
            yield checkpoint
            return
        files = run_on_main(
            lambda: {
                path.name: path.read_bytes()
                for path in checkpoint.paramfiles.values()
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            paths = {Path(name).stem: Path(folder, name) for name in files}
            for path in paths.values():
                path.write_bytes(files[path.name])
            yield checkpoint._replace(path=Path(folder), paramfiles=paths)


@saved_by_all_ranks
class RandomState:
    """Recoverable: torch's random states of all ranks, for dropout.

    Where the number of ranks has changed, further ranks keep the states that
    they start with.
    """

    @sb_checkpoints.mark_as_saver
    def _save(self, path):
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        states = gather_over_ranks(state)
        if if_main_process():
            torch.save(states, path)

    @sb_checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        states = torch.load(path, weights_only=True)
        if own_rank() >= len(states):
            return
        state = states[own_rank()]
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
