#!/usr/bin/env python3
"""Runs the script of the same name on RAVDESS.

The training scripts know no corpus: there is one copy, in the IEMOCAP recipe,
and the YAML chooses the corpus. See there for the options.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve()
    folder = here.parents[2] / "IEMOCAP" / "wap_adapter"
    sys.path[0:1] = [str(folder), str(here.parents[1])]
    runpy.run_path(str(folder / here.name), run_name="__main__")
