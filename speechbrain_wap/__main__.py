"""All that is no training: python -m speechbrain_wap COMMAND ...

"python -m speechbrain_wap --help" lists the commands, "COMMAND --help" says
what one takes. Typed in a recipe's folder, a command finds its train scripts.
"""

import importlib
import sys

from speechbrain_wap.errors import RecipeError
from speechbrain_wap.training.experiment import run_command

# A command's module has main(arguments), and says in its docstring what it does
COMMANDS = {
    "compare": "speechbrain_wap.comparisons.compare",
    "embeddings": "speechbrain_wap.comparisons.embeddings",
    "export": "speechbrain_wap.export",
    "features": "speechbrain_wap.features.command",
    "recognize": "speechbrain_wap.recognize",
    "report": "speechbrain_wap.reports.report_command",
    "sweep": "speechbrain_wap.comparisons.sweep",
    "table1": "speechbrain_wap.comparisons.table1",
}


def _describe_commands():
    """Lists the commands, with the first line of each one's docstring."""
    text = f"{__doc__.strip()}\n\nCommands:"
    for command, name in COMMANDS.items():
        module = importlib.import_module(name)
        text += f"\n  {command:<11}{module.__doc__.strip().splitlines()[0]}"
    return text


def main(arguments):
    """Runs a command.

    Arguments
    ---------
    arguments : list of str
        As in ``sys.argv[1:]``: the command's name and its own arguments.

    Raises
    ------
    RecipeError
        If there is no such command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_describe_commands())
        return
    command, *own = arguments
    if command not in COMMANDS:
        raise RecipeError(
            f"{command} is no command: choose one of {', '.join(COMMANDS)}."
        )
    module = importlib.import_module(COMMANDS[command])
    if {"-h", "--help"} & set(own):
        print(module.__doc__.strip())
        return
    module.main(own)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
