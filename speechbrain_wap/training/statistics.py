"""Means of an epoch over all ranks, and what is kept of epochs past."""

import json

import torch
from speechbrain.utils import checkpoints as sb_checkpoints
from speechbrain.utils.distributed import if_main_process

from speechbrain_wap.files import write_text
from speechbrain_wap.training.checkpoints import saved_by_all_ranks
from speechbrain_wap.training.ranks import count_ranks, gather_over_ranks


@saved_by_all_ranks
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
        self.sums, self.weights = {}, {}

    def add(self, values, weight=1.0):
        """Takes the values of a step.

        Arguments
        ---------
        values : dict
            Numbers or scalar tensors by name; a mean is over the steps that
            have it.
        weight : float or torch.Tensor
            Weight of this rank's values in the mean; those of weight 0 may be
            NaN.
        """
        if not torch.is_tensor(weight) and weight == 0.0:
            return
        for name, value in values.items():
            # stay tensors: turning them into numbers here would wait for them
            value = value.detach() if torch.is_tensor(value) else value
            share = weight
            if torch.is_tensor(weight):
                share = weight.to(value.dtype)
            self.sums[name] = self.sums.get(name, 0.0) + share * value
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def _totals(self):
        """Adds up sums and weights of all ranks."""
        own = [
            {name: float(total) for name, total in part.items()}
            for part in (self.sums, self.weights)
        ]
        totals, weights = {}, {}
        for part, its_weights in gather_over_ranks(own):
            for name, total in part.items():  # none of a rank without steps
                totals[name] = totals.get(name, 0.0) + total
                weights[name] = weights.get(name, 0.0) + its_weights[name]
        return totals, weights

    def means(self):
        """Averages the epoch's steps so far, over all ranks.

        Returns
        -------
        means : dict
        """
        totals, weights = self._totals()
        return {name: total / weights[name] for name, total in totals.items()}

    def end_epoch(self, row):
        """Writes the epoch's row and starts the next epoch.

        Arguments
        ---------
        row : dict
            Plain values.
        """
        self.rows.append(row)
        self.sums, self.weights = {}, {}
        if if_main_process():
            write_text(self.path, json.dumps(self.rows, indent=1))

    @sb_checkpoints.mark_as_saver
    def _save(self, path):
        sums, weights = self._totals()
        if if_main_process():
            # as if of one rank: another number of them may go on
            ranks = count_ranks()
            sums = {name: total / ranks for name, total in sums.items()}
            weights = {name: one / ranks for name, one in weights.items()}
            state = {"rows": self.rows, "sums": sums, "weights": weights}
            with open(path, "w", encoding="utf-8") as file:
                json.dump(state, file)

    @sb_checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        self.rows, self.sums, self.weights = state["rows"], {}, {}
        if if_main_process():  # the sums are those of all ranks
            ranks = count_ranks()
            for name, total in state["sums"].items():
                self.sums[name] = ranks * total
                self.weights[name] = ranks * state["weights"][name]
