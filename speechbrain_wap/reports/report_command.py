r"""Makes report.md and report.html again, from what the runs have left.

> python -m speechbrain_wap report results/my_run

takes the output folder of cross_validate.py, trains nothing and needs neither
corpus nor encoder. report.html is one file that opens from the disk; it plays
the recordings from where they were.
"""

from pathlib import Path

from speechbrain_wap.errors import CommandParser
from speechbrain_wap.files import expand_path, only_process
from speechbrain_wap.reports.page import write_page
from speechbrain_wap.reports.report import write_report
from speechbrain_wap.reports.report_facts import read_facts


def make_reports(output_folder):
    """Writes report.md with its figures, and report.html.

    Arguments
    ---------
    output_folder : str
        Of cross_validate.py.
    """
    facts = read_facts(output_folder)
    write_report(facts)
    write_page(facts)


def main(arguments):
    """Makes the reports of a folder.

    Arguments
    ---------
    arguments : list of str
        The folder.
    """
    parser = CommandParser("report")
    parser.add_argument("folder")
    folder = Path(expand_path(parser.parse_args(arguments).folder))
    read_facts(folder)  # that there is such a folder, before it gets a lock
    with only_process(folder, wait=True):
        make_reports(folder)
    print(f"Written to {folder / 'report.html'} and report.md")
