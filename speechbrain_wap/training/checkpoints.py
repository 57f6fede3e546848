"""What SpeechBrain's checkpoints lack for a resumed run to equal another.

A checkpoint here is complete or not there, says of each of its files what it
should hold, and has the random states of all ranks and the statistics of the
epochs so far.
"""

import json
import os
import shutil
import tempfile
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
# What the others of a checkpoint hold; the meta file is read far more often
FILES = "files.json"
# For what has to hear of all ranks before the main process writes it.
saved_by_all_ranks = partial(
    sb_checkpoints.register_checkpoint_hooks, save_on_main_only=False
)


def load_weights(module, path, end_of_epoch=True):
    """Loads a state that torch saved, and no code with it.

    Arguments
    ---------
    module : object
        Whatever has ``load_state_dict``.
    path : str
        The file.
    end_of_epoch : bool
        Taken for SpeechBrain's interface.
    """
    del end_of_epoch
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state)


def describe_file(path):
    """Says how to tell whether a file is what it was.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    description : list of int
        Size and CRC-32.

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "a"
    >>> _ = path.write_bytes(b"abc")
    >>> describe_file(path)
    [3, 891568578]
    """
    size, checksum = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]


def find_damage(checkpoint):
    """Looks for files of a checkpoint that are not as they were written.

    Arguments
    ---------
    checkpoint : speechbrain.utils.checkpoints.Checkpoint
        The checkpoint.

    Returns
    -------
    damaged : pathlib.Path or None
        The first such file.
    """
    path = checkpoint.path / FILES
    try:
        for name, description in json.loads(path.read_text("utf-8")).items():
            path = checkpoint.path / name
            if describe_file(path) != description:
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

    Arguments
    ---------
    *args : tuple
        As SpeechBrain's.
    **kwargs : dict
        As SpeechBrain's.
    """

    def __init__(self, *args, **kwargs):
        # of all ranks: where an interrupted epoch is taken up depends on it
        self.batch_size = None
        super().__init__(*args, **kwargs)

    def _save_checkpoint_metafile(self, fpath, *args, **kwargs):
        hidden = fpath.with_name(f"{METAFILE}.partial")
        return super()._save_checkpoint_metafile(hidden, *args, **kwargs)

    def save_checkpoint(self, meta=None, **kwargs):
        """Saves a checkpoint and makes it visible in the end.

        Arguments
        ---------
        meta : dict, optional
            As SpeechBrain's.
        **kwargs : dict
            As SpeechBrain's.

        Returns
        -------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint or None
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
        files = {
            path.name: describe_file(path)
            for path in sorted(checkpoint.paramfiles.values())
        }
        with open(checkpoint.path / FILES, "w", encoding="utf-8") as file:
            json.dump(files, file)
        partial = checkpoint.path / f"{METAFILE}.partial"
        os.replace(partial, checkpoint.path / METAFILE)
        for left in self.checkpoints_dir.glob("CKPT*"):
            if not (left / METAFILE).is_file():  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)

    def delete_checkpoints(self, **kwargs):
        """Deletes all checkpoints but the most important ones.

        The main process alone decides: ranks that list the folder at other
        moments would wait for different numbers of deletions.

        The arguments are SpeechBrain's.
        """
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

    def find_checkpoint(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
    ):
        """Picks the newest or best checkpoint, if it is as it was written.

        The arguments are SpeechBrain's.

        Returns
        -------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint or None
            None where there is none at all.

        Raises
        ------
        RecipeError
            If all are damaged, or the best one is.
        """
        found = self.find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate
        )
        for checkpoint in found:
            damaged = find_damage(checkpoint)
            if damaged is None:
                return checkpoint
            if max_key or min_key:  # another one would give other scores
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

    def recover_if_possible(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
    ):
        """Loads the main process's choice of checkpoint on all ranks.

        The arguments are SpeechBrain's.

        Returns
        -------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint or None
        """

        def can_be_taken_up(checkpoint):
            """Other batches have no place within an epoch in common."""
            chosen = ckpt_predicate is None or ckpt_predicate(checkpoint)
            same = checkpoint.meta.get("batch_size") == self.batch_size
            return chosen and (same or checkpoint.meta["end-of-epoch"])

        checkpoint = run_on_main(
            self.find_checkpoint,
            args=[importance_key, max_key, min_key, can_be_taken_up],
        )
        if checkpoint is None:
            return None
        with self._within_reach(checkpoint) as reached:
            self.load_checkpoint(reached)
        return checkpoint

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

    def add_recoverable(self, name, obj, custom_load_hook=None, **kwargs):
        """Registers what is to be saved.

        Arguments
        ---------
        name : str
            Its file's name.
        obj : object
            What is saved.
        custom_load_hook : callable, optional
            As SpeechBrain's; what has a ``state_dict`` is loaded as weights
            only.
        **kwargs : dict
            As SpeechBrain's.
        """
        if custom_load_hook is None and hasattr(obj, "load_state_dict"):
            custom_load_hook = load_weights
        super().add_recoverable(name, obj, custom_load_hook, **kwargs)

    def add_recoverables(self, recoverables):
        """Registers several things to be saved.

        Arguments
        ---------
        recoverables : dict
            What is saved, by name.
        """
        self.custom_load_hooks = getattr(self, "custom_load_hooks", {})
        for name, obj in recoverables.items():
            self.add_recoverable(name, obj)


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
