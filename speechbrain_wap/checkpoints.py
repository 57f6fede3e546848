"""What SpeechBrain's checkpoints lack for a resumed run to equal another.

A checkpoint here is complete or not there, and holds the random states and the
statistics of the epochs so far.
"""

import json
import os
import shutil

import torch
from speechbrain.utils import checkpoints as sb_checkpoints
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    run_on_main,
)

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.files import write_text
from speechbrain_wap.ranks import average_over_ranks

METAFILE = sb_checkpoints.METAFNAME


class Checkpointer(sb_checkpoints.Checkpointer):
    """SpeechBrain's checkpointer, but a half-written checkpoint is not seen.

    SpeechBrain takes a folder for a checkpoint once its meta file exists, and
    writes that file first; here it gets its name last.
    """

    def _save_checkpoint_metafile(self, fpath, *args, **kwargs):
        hidden = fpath.with_name(f"{METAFILE}.partial")
        return super()._save_checkpoint_metafile(hidden, *args, **kwargs)

    def save_checkpoint(self, *args, **kwargs):
        """Saves a checkpoint and makes it visible in the end.

        Arguments
        ---------
        *args : tuple
            As SpeechBrain's.
        **kwargs : dict
            As SpeechBrain's.

        Returns
        -------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint or None
        """
        try:
            checkpoint = super().save_checkpoint(*args, **kwargs)
            if if_main_process():
                partial = checkpoint.path / f"{METAFILE}.partial"
                os.replace(partial, checkpoint.path / METAFILE)
                for left in self.checkpoints_dir.glob(f"*/{partial.name}"):
                    shutil.rmtree(left.parent)  # of a run that was killed
        except (OSError, RuntimeError) as error:  # torch.save raises either
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(
                f"no checkpoint can be saved in {self.checkpoints_dir} "
                f"({reason}): the last one is kept; make room and run the "
                "same command again."
            )
        ddp_barrier()  # before another rank looks for the newest one
        return checkpoint

    def delete_checkpoints(self, **kwargs):
        """Deletes all checkpoints but the most important ones.

        The main process alone decides: ranks that list the folder at other
        moments would wait for different numbers of deletions.

        Arguments
        ---------
        **kwargs : dict
            As SpeechBrain's.
        """
        run_on_main(super().delete_checkpoints, kwargs=kwargs)


@sb_checkpoints.register_checkpoint_hooks
class RandomState:
    """Recoverable: torch's random states, which dropout draws from."""

    @sb_checkpoints.mark_as_saver
    def _save(self, path):
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        torch.save(state, path)

    @sb_checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        state = torch.load(path, weights_only=True)
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


@sb_checkpoints.register_checkpoint_hooks
class EpochStatistics:
    """Recoverable: running means of an epoch, and a row for each one past.

    In distributed training the means are those of all ranks together.

    Being part of the checkpoint, the rows have neither gaps nor repetitions
    after an interruption.

    Arguments
    ---------
    path : str
        JSON file that gets the rows at the end of each epoch.

    Example
    -------
    >>> statistics = EpochStatistics(getfixture("tmpdir") / "history.json")
    >>> statistics.add({"loss": 1.0})
    >>> statistics.add({"loss": 3.0})
    >>> statistics.means()
    {'loss': 2.0}
    >>> statistics.end_epoch({"epoch": 1})
    """

    def __init__(self, path):
        self.path = str(path)
        self.rows = []
        self.sums = {}
        self.count = 0

    def add(self, values, share=1.0):
        """Takes the values of a step.

        Arguments
        ---------
        values : dict
            Numbers or scalar tensors by name, the same names every time.
        share : float
            Weight of this rank's values, on average 1 over the ranks; values
            of weight 0 may be NaN.
        """
        self.count += 1
        for name, value in values.items():
            # stays a tensor: turning it into a number here would wait for it
            value = value.detach() if torch.is_tensor(value) else value
            weighted = share * value if share else 0.0
            self.sums[name] = self.sums.get(name, 0.0) + weighted

    def means(self):
        """Averages the epoch's steps so far, over all ranks.

        Returns
        -------
        means : dict
        """
        means = torch.tensor(
            [float(total) for total in self.sums.values()],
            dtype=torch.float64,
        ) / max(self.count, 1)
        means = average_over_ranks(means)
        return dict(zip(self.sums, means.tolist()))

    def end_epoch(self, row):
        """Writes the epoch's row and starts the next epoch.

        Arguments
        ---------
        row : dict
            Plain values.
        """
        self.rows.append(row)
        self.sums, self.count = {}, 0
        if if_main_process():
            write_text(self.path, json.dumps(self.rows, indent=1))

    @sb_checkpoints.mark_as_saver
    def _save(self, path):
        sums = {name: float(total) for name, total in self.sums.items()}
        state = {"rows": self.rows, "sums": sums, "count": self.count}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(state, file)

    @sb_checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        self.rows, self.sums = state["rows"], state["sums"]
        self.count = state["count"]
