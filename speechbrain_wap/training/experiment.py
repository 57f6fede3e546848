"""A run of a train script: what it is told, what is built, where it writes."""

import gc
import inspect
import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from speechbrain.utils.distributed import (
    if_main_process,
    is_distributed_initialized,
    run_on_main,
)
from speechbrain.utils.run_opts import RunOptions

from speechbrain_wap.data.folds import SPLITS
from speechbrain_wap.data.manifests import read_manifests
from speechbrain_wap.data.preparation import prepare_table
from speechbrain_wap.errors import RecipeError, print_any_text, report_errors
from speechbrain_wap.features.extraction import (
    cut_long_utterances,
    find_used_seconds,
)
from speechbrain_wap.files import only_process, write_text
from speechbrain_wap.progress import switch_bars
from speechbrain_wap.training.machine import (
    give_back_freed_memory,
    warn_of_slow_run,
)
from speechbrain_wap.training.ranks import is_lost_rank, own_rank
from speechbrain_wap.training.resume_guard import (
    default_output_folder,
    name_data,
    record_settings,
    refuse_changes,
    restored_if_refused,
)
from speechbrain_wap.training.settings import Reading


class Experiment:
    """One run of a train script.

    Where the user names no output folder, it gets one that no other settings
    share.

    Arguments
    ---------
    command : speechbrain_wap.training.command_line.Command
        What the script is told.
    needed : tuple of str
        Keys that the script reads; what tells its stage comes first.

    Attributes
    ----------
    hparams : dict
        What HyperPyYAML built.
    settings : dict
        Plain values, to which the run adds what else it depends on.
    overrides : dict
        The user's values.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's own options.
    folder : pathlib.Path
        The output folder.

    Raises
    ------
    RecipeError
        If the YAML is another stage's, no corpus is given, a value does not
        fit, or the output folder holds a run with other settings, which is
        left as it is.
    """

    def __init__(self, command, needed):
        switch_bars(not command.run_opts["noprogressbar"])
        reading = Reading(command)
        reading.check_stage(needed)
        reading.check_corpus()
        script = inspect.currentframe().f_back.f_code.co_filename
        reading.warn_of_unread(str(script), needed)
        self.overrides, self.run_opts = command.overrides, command.run_opts
        self.settings = reading.settings
        self.hparams_file = command.hparams_file
        if "output_folder" not in self.overrides:
            folder = default_output_folder(
                self.settings,
                self.settings["output_folder"],
                name_data(reading.data, reading.corpora),
            )
            reading.set_output_folder(folder)
        # before anything in the folder is written over
        refuse_changes(Path(reading.output_folder, "save"), self.settings)
        self.hparams = reading.build()
        several = dict(self.hparams).get("feature_caches")
        for key in ("corpus", "fold_plan", "feature_cache"):
            is_spare = key == "feature_cache" and several
            if self.hparams[key] is None and not is_spare:
                raise RecipeError(
                    f"{command.hparams_file}: {key} is null: wire it as the "
                    "recipe's own YAML does."
                )
        try:
            corpus = {**self.hparams["corpus"], "corpus_table": ""}
            inspect.signature(prepare_table).bind(**corpus)
        except TypeError as error:
            raise RecipeError(f"{command.hparams_file}: corpus {error}.")
        encoder = dict(self.hparams).get("encoder")
        if getattr(encoder, "revision", None) is not None:
            # what a branch, or no revision, stands for today
            reading.set_encoder_revision(encoder.revision)
        self.text = reading.text
        self.folder = Path(self.hparams["output_folder"])
        self.save_folder = self.hparams["save_folder"]
        # the corpus under test
        self.corpus_table = str(self.folder / "corpus.csv")
        # what could not be read or encoded, with the reason
        self.skipped_csv = str(self.folder / "skipped.csv")
        # what of further corpora may not, or need not, train
        self.left_out_csv = str(self.folder / "left_out.csv")
        # a row for each epoch
        self.history = str(self.folder / "history.json")
        # minutes and peak memory
        self.cost = str(self.folder / "cost.json")
        # the test utterances' probabilities
        self.predictions_csv = str(self.folder / "predictions.csv")
        # these mark a finished fold
        self.scores = str(self.folder / "scores.json")

    @property
    def manifests(self):
        """The JSON manifest of each split."""
        return {name: self.hparams[f"{name}_annotation"] for name in SPLITS}

    def read_splits(self, fields):
        """Reads the manifests, and checks that no speaker leaks.

        Arguments
        ---------
        fields : tuple of str
            What each utterance must have, as text.

        Returns
        -------
        splits : dict
            Manifest entries by utterance id of each split; see
            :func:`speechbrain_wap.features.extraction.cut_long_utterances`.
        """
        # those that have just been made are of the files that there are
        earlier = self.hparams["skip_prep"]
        cache_folder = self.hparams["cache_folder"] if earlier else None
        # read by one rank: nodes may have disks of their own
        splits = run_on_main(
            read_manifests,
            args=[self.manifests, fields, cache_folder],
            kwargs={"protocol": self.hparams["fold_plan"].protocol},
        )
        if self.hparams["long_utterances"] == "cut":
            limits = [*self.caches.values()], self.hparams["max_frames"]
            splits = cut_long_utterances(splits, *limits)
        return splits

    @property
    def caches(self):
        """The feature caches by name; a single one is called ""."""
        several = dict(self.hparams).get("feature_caches")
        return several or {"": self.hparams["feature_cache"]}

    @property
    def used_seconds(self):
        """What a model is given of an utterance at most; None: all of it."""
        if self.hparams["long_utterances"] != "cut":
            return None
        encoders = [cache.encoder for cache in self.caches.values()]
        return find_used_seconds(encoders, self.hparams["max_frames"])

    @property
    def encoder_key(self):
        """What the features depend on."""
        keys = {name: cache.key for name, cache in self.caches.items()}
        return keys[""] if list(keys) == [""] else json.dumps(keys)

    @contextmanager
    def open(self):
        """Keeps other processes out of the folder while the run lasts."""
        written = [self.folder / "hyperparams.yaml", self.corpus_table]
        written += [*self.manifests.values(), self.left_out_csv]
        with (
            only_process(self.folder),
            restored_if_refused(self.save_folder, written),
        ):
            warn_of_slow_run(self.run_opts)
            if if_main_process():
                origin = f"# Generated from:\n# {self.hparams_file}\n"
                write_text(written[0], origin + self.text)
            yield
        gc.collect()  # a Brain and its checkpointer refer to each other
        give_back_freed_memory()  # a next fold would leave other holes

    def remove_empty_save_folder(self):
        """Undoes what building has made where nothing is trained."""
        with suppress(OSError):
            os.rmdir(self.save_folder)

    def record(self):
        """Records the settings, or refuses those that differ."""
        run_on_main(record_settings, args=[self.save_folder, self.settings])


def run_script(main):
    """Runs a script's main function on the command line.

    ``--help`` prints what stands at the top of the script.

    Arguments
    ---------
    main : callable
        Takes the list of command line arguments.
    """
    print_any_text()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(main.__globals__["__doc__"])
        print("Options are the YAML's keys and those of SpeechBrain:")
        print(" ".join(f"--{key}" for key in RunOptions().keys()))
        return
    run_command(main, sys.argv[1:])


def run_command(main, arguments):
    """Runs a command and says a user's mistake in a sentence.

    Arguments
    ---------
    main : callable
        Takes the list of arguments.
    arguments : list of str
        What stands behind the command.
    """
    print_any_text()
    with report_errors():
        try:
            main(arguments)
        except RuntimeError as error:
            # the ranks wait for one that has said why it stopped
            if own_rank() > 0 and is_lost_rank(error):
                sys.exit("error: another rank has stopped.")
            raise
    if is_distributed_initialized():
        torch.distributed.destroy_process_group()
