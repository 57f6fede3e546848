"""The table of faults in docs/faults.md: what the tests write and read.

``make faults`` writes it anew.
"""

import re
from pathlib import Path

from recipe_runs import REPOSITORY

FILE = REPOSITORY / "docs" / "faults.md"
COLUMNS = ("fault", "what happened", "what was kept")
HEAD = """# Faults

What the recipes do about bad input and interruptions. Every row is a test that
has passed; the words are those that were printed. Written by

```
make faults
```
"""


def write_fault_table(rows, path):
    """Writes a heading and a table for each kind of fault.

    Arguments
    ---------
    rows : list of tuple
        Kind, fault, what happened and what was kept.
    path : str
        The Markdown file.
    """
    parts = [HEAD]
    for kind in dict.fromkeys(row[0] for row in rows):
        cells = [_make_row(row[1:]) for row in rows if row[0] == kind]
        title = f"## {kind.capitalize()} ({len(cells)})"
        rule = "|" + "---|" * len(COLUMNS)
        parts.append("\n".join([title, "", _make_row(COLUMNS), rule, *cells]))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"{part.strip()}\n" for part in parts), "utf-8")


def read_faults(path, kind):
    """Lists the faults of a kind that a table has.

    Arguments
    ---------
    path : str
        The Markdown file.
    kind : str
        As it was given when the rows were recorded.

    Returns
    -------
    faults : list of str
    """
    faults, inside = [], False
    for line in Path(path).read_text("utf-8").splitlines():
        if line.startswith("## "):
            title = line[3:].rpartition(" (")[0]
            inside = title == kind.capitalize()
        elif inside and line.startswith("| "):
            cell = re.split(r"(?<!\\)\|", line)[1]
            faults.append(cell.strip().replace(r"\|", "|"))
    return faults[1:]  # without the table's head


def hide_places(text, base):
    """Shows temporary folders, which are others every time, as "...".

    Arguments
    ---------
    text : str
        What was printed.
    base : pathlib.Path
        The folder of all temporary folders of a session.

    Returns
    -------
    text : str
    """
    places = rf"{re.escape(str(base))}(/[\w-]+)?|{re.escape(str(REPOSITORY))}"
    return re.sub(places, "...", text)


def _make_row(cells):
    """Joins the cells of a row; a cell is one line without a bar."""
    texts = (" ".join(str(cell).split()) for cell in cells)
    return "| " + " | ".join(text.replace("|", r"\|") for text in texts) + " |"
