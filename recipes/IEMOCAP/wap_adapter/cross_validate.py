#!/usr/bin/env python3
r"""Both stages for every fold and seed, then the report.

> python cross_validate.py hparams/adapter.yaml hparams/classifier.yaml \
    --data_folder=/path/to/corpus --output_folder=results/my_run

Options of its own: --folds=1,2,3 (default: all), --seeds=1993,1994 (default:
the YAML's), --adapter_training=False (no stage 1; default: what the
classifier's YAML says), --adapter_folder=DIR (no stage 1, but this earlier
adapter for all folds; DIR_{seed}: one for each seed),
--adapters_folder=results/run (where stage 1 of each fold and seed lies or is to
lie, for runs that differ in stage 2 only; default: the output folder), --jobs=4
(that many folds at a time, each in a process of its own; changes no number: on
a CPU a fold has one thread, or what OMP_NUM_THREADS says). Any other key goes
to the stages whose YAML has it; --adapter.key=value and --classifier.key=value
to one stage. The same command again takes up what was interrupted. Several
processes, on several nodes too, may share an output folder, such as a cluster's
array with --folds=k in each task: a fold is run by one of them, and the report
is of all that is finished whenever one of them ends.
"""

from speechbrain_wap.reports.cross_validation_report import cross_validate
from speechbrain_wap.training.cross_validation import CrossValidation
from speechbrain_wap.training.experiment import run_script


def main(arguments):
    """Runs the cross-validation with the train scripts beside this one.

    Arguments
    ---------
    arguments : list of str
        The command line.
    """
    cross_validate(CrossValidation(arguments))


if __name__ == "__main__":
    run_script(main)
