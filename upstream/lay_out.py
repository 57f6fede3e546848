"""Lays the recipe into a SpeechBrain checkout, at its homes there.

> python upstream/lay_out.py /path/to/speechbrain

What goes there is the least that reproduces the paper. The paper's nouns, their
tests and what the corpora's prepare files know are taken from this project,
with their imports rewritten and the checks of arguments left out; what differs
beyond that stands in ``nouns.patch``. What is new there is in ``files/`` and
``prepare/``; the YAML files of ``hparams/`` are filled with the values of this
project's, and ``rows/`` joins SpeechBrain's tables of recipe tests.

Files that are not of this tool must be clean; its own are written anew, so that
a second run changes nothing.
"""

import argparse
import ast
import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
NOUNS = "speechbrain/lobes/models/wap_adapter"

# Each file there: the project's files that it is made of, and which of their
# definitions; "" for all of them, "-name" for all but this one.
PACKAGE = "speechbrain_wap"
PIECES = {
    f"{NOUNS}/frames.py": {
        f"{PACKAGE}/packing.py": "valid_frames select_frames",
        f"{PACKAGE}/precision.py": "",
        f"{PACKAGE}/frame_input.py": "",
    },
    f"{NOUNS}/wap_transformer.py": {
        f"{PACKAGE}/wap_transformer.py": "WAPTransformer MLP"
    },
    f"{NOUNS}/emotion_model.py": {
        f"{PACKAGE}/emotion_model.py": "EmotionModel"
    },
    f"{NOUNS}/targets.py": {f"{PACKAGE}/targets.py": "-Predictor"},
    **{
        f"{NOUNS}/{name}.py": {f"{PACKAGE}/{name}.py": ""}
        for name in (
            *("masking", "teacher", "local_attributes", "losses", "pooling"),
            *("schedules", "augmentation"),
        )
    },
    "recipes/IEMOCAP/iemocap_folds_prepare.py": {
        "recipes/IEMOCAP/iemocap_prepare.py": (
            "logger TURN_LINE STYLES NO_LABELS KNOWN_COUNTS _read_session"
        ),
        "upstream/prepare/iemocap.py": "",
    },
    "recipes/EmoDB/emodb_prepare.py": {
        "recipes/EmoDB/emodb_prepare.py": (
            "logger FILE_NAME EMOTIONS MEN WOMEN SESSIONS KNOWN_COUNTS"
        ),
        "upstream/prepare/emodb.py": "",
    },
}
# The tests of each noun: its test file here, and which of its definitions; left
# out are those of what stays here
TESTS = {
    "frames": (
        *("packing", "test_relative_lengths_give_back_every_number_of_frames"),
    ),
    "wap_transformer": (
        "wap_transformer",
        "-test_several_encoder_layers_are_averaged_with_softmax_weights",
    ),
    "emotion_model": (
        "emotion_model",
        "-test_a_model_may_be_of_any_precision "
        "-test_without_lengths_all_frames_are_valid "
        "-test_an_utterance_of_length_zero_changes_no_other "
        "-test_an_exported_graph_takes_any_batch "
        "-test_any_backbone_and_pooling_may_be_wired -Backbone -Pooling",
    ),
    "targets": (
        *("targets", "-test_the_predictor_has_gelu_between_its_linear_layers"),
    ),
    "teacher": (
        "teacher",
        "-test_the_decay_rises_and_the_teacher_moves_once_per_optimiser_step",
    ),
    "masking": ("masking", ""),
    "local_attributes": ("local_attributes", ""),
    "losses": ("losses", ""),
    "pooling": ("pooling", ""),
    "schedules": ("schedules", ""),
    "augmentation": ("augmentation", ""),
}
# What nothing there may import
OWN_MODULES = (
    f"{PACKAGE} helpers recipe_runs iemocap_prepare emodb_prepare".split()
)
LINKS = {
    "recipes/IEMOCAP/wap_adapter/iemocap_folds_prepare.py": (
        "../iemocap_folds_prepare.py"
    ),
    "recipes/EmoDB/wap_adapter/emodb_prepare.py": "../emodb_prepare.py",
    **{
        f"recipes/EmoDB/wap_adapter/{name}.py": (
            f"../../IEMOCAP/wap_adapter/{name}.py"
        )
        for name in ("train_adapter", "train_classifier")
    },
}
# How SpeechBrain's ruff lays out code
FORMAT = ["--isolated", "--config=line-length=80"]
FORMAT_ALSO = [*FORMAT, "--config=format.docstring-code-format=true"]
FIX = [
    *FORMAT,
    "--select=F401,F811,I",
    '--config=lint.isort.known-first-party=["speechbrain"]',
    "--config=lint.isort.split-on-trailing-comma=false",
]


# Python ----------------------------------------------------------------------


def take_definitions(path, wanted):
    """Takes definitions out of a file of this project.

    Arguments
    ---------
    path : str
        The file.
    wanted : str
        Their names; "" for all, "-name" for all but this one.

    Returns
    -------
    docstring : str
        The module's.
    imports, definitions : list of str
        The source of each, with the comment above it.
    """
    text = (PROJECT / path).read_text("utf-8")
    lines = text.splitlines()
    tree = ast.parse(text)
    names = {name for node in tree.body for name in _list_names(node)}
    listed = {name.lstrip("-") for name in wanted.split()}
    if not listed <= names:
        sys.exit(f"error: {path} has no {', '.join(sorted(listed - names))}.")
    wanted = names - listed if wanted[:1] in ("", "-") else listed
    imports, definitions = [], []
    for node in tree.body[1:]:
        start = node.lineno
        if getattr(node, "decorator_list", None):
            start = node.decorator_list[0].lineno
        while lines[start - 2].startswith("#"):  # the comment above it
            start -= 1
        source = "\n".join(lines[start - 1 : node.end_lineno])
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(source)
        elif wanted & set(_list_names(node)):
            definitions.append(source)
    return ast.get_docstring(tree, clean=False), imports, definitions


def _list_names(node):
    """Lists what a statement of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [
            name.id
            for target in node.targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        ]
    return []


def compose(pieces):
    """Joins the pieces of a file; the last one's docstring is the file's."""
    imports, definitions = [], []
    for path, wanted in pieces.items():
        docstring, its_imports, its_definitions = take_definitions(path, wanted)
        imports += its_imports
        definitions += its_definitions
    blocks = ["\n".join(imports)]
    for source in definitions:
        is_constant = re.match(r"(#.*\n)*[\w, ]+ =", source)
        blocks.append(("\n" if is_constant else "\n\n\n") + source)
    return f'"""{docstring}"""\n\n' + "".join(blocks) + "\n"


def compose_test(name, wanted):
    """Joins a test file with the helpers that its tests import."""
    path = f"tests/unittests/test_{name}.py"
    pieces, tests = {}, compose({path: wanted})
    imports = [n for n in ast.parse(tests).body if hasattr(n, "module")]
    for module, helpers in (
        ("helpers", "tests/unittests/helpers.py"),
        ("recipe_runs", "tests/recipe_runs.py"),
    ):
        tree = ast.parse((PROJECT / helpers).read_text("utf-8"))
        known = {n: ast.unparse(d) for d in tree.body for n in _list_names(d)}
        imported = {
            alias.name
            for node in imports
            if node.module == module
            for alias in node.names
        }
        needed = {n for n in imported if re.search(rf"\b{n}\(", tests)}
        for helper in [*needed]:  # those that it needs itself
            needed |= {n for n in known if f"{n}(" in known[helper]}
        if needed:
            pieces[helpers] = " ".join(sorted(needed))
    return compose({**pieces, path: wanted})


def leave_out_checks(text):
    """Leaves out checks of numbers; a choice raises on the spot.

    Arguments
    ---------
    text : str
        Source text that may call this project's ``check_...`` functions.

    Returns
    -------
    text : str

    Example
    -------
    >>> text = 'check_choice("a", a, ("x", "y"))\\ncheck_number("b", b)'
    >>> print(leave_out_checks(text))
    if a not in ('x', 'y'):
        raise ValueError(
            f"a={a} is unknown: "
            "choose one of x, y."
        )
    <BLANKLINE>
    """
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        name = _find_check(node)
        if isinstance(node, ast.For):
            name = all(map(_find_check, node.body))
        if not name:
            continue
        new = None
        if name == "check_choice":
            key, value, choices = map(ast.unparse, node.value.args)
            key, indent = ast.literal_eval(key), " " * node.col_offset
            known = f"f\"choose one of {{', '.join({choices})}}.\""
            if isinstance(node.value.args[2], ast.Tuple):
                known = ", ".join(ast.literal_eval(choices))
                known = f'"choose one of {known}."'
            new = (
                f"{indent}if {value} not in {choices}:\n"
                f"{indent}    raise ValueError(\n"
                f'{indent}        f"{key}={{{value}}} is unknown: "\n'
                f"{indent}        {known}\n"
                f"{indent}    )"
            )
        size = node.end_lineno - node.lineno
        lines[node.lineno - 1 : node.end_lineno] = [new, *[None] * size]
    return "\n".join(line for line in lines if line is not None) + "\n"


def _find_check(node):
    """Names the check that a statement calls; None if it is another."""
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    name = getattr(node.value.func, "id", "") if is_call else ""
    return name if name.startswith("check_") else None


def rewrite_imports(text, homes):
    """Lets a file import from where names are in SpeechBrain.

    Arguments
    ---------
    text : str
        Source text.
    homes : dict
        The module there of each name; the import of others is left out.

    Returns
    -------
    text : str
    """
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        root = node.module.partition(".")[0]
        if root not in OWN_MODULES:
            continue
        new = [
            f"from {homes[alias.name]} import {alias.name}"
            for alias in node.names
            if alias.name in homes
        ]
        size = node.end_lineno - node.lineno
        new = "\n".join(new) or None
        lines[node.lineno - 1 : node.end_lineno] = [new, *[None] * size]
    text = "\n".join(line for line in lines if line is not None) + "\n"
    text = re.sub(rf"\b{PACKAGE}\.errors\.RecipeError", "ValueError", text)
    for name, home in homes.items():  # in Examples
        text = re.sub(
            rf"(>>> from ){PACKAGE}[.\w]* (import {name})$",
            rf"\1{home} \2",
            text,
            flags=re.MULTILINE,
        )
    return text.replace("RecipeError", "ValueError")


def make_python():
    """Makes the Python files that are taken from this project.

    Returns
    -------
    files : dict
        Text by path.
    """
    files = {path: compose(pieces) for path, pieces in PIECES.items()}
    homes = {"Dropout": "torch.nn"}
    for path, text in files.items():
        if path.startswith(NOUNS):
            module = path[:-3].replace("/", ".")
            homes[module.rpartition(".")[2]] = module.rpartition(".")[0]
            for node in ast.parse(text).body:
                homes.update(dict.fromkeys(_list_names(node), module))
    for name, (test, wanted) in TESTS.items():
        own_name = name.removeprefix("wap_")
        path = f"tests/unittests/test_wap_{own_name}.py"
        files[path] = compose_test(test, wanted)
    return {
        path: rewrite_imports(leave_out_checks(text), homes)
        for path, text in files.items()
    }


# YAML ------------------------------------------------------------------------


def fill_yaml(text, corpus, stage):
    """Gives a YAML file the values of this project's.

    Arguments
    ---------
    text : str
        With ``@key@`` in the place of the line of a key.
    corpus, stage : str
        Whose values.

    Returns
    -------
    text : str

    Raises
    ------
    SystemExit
        If the project's YAML has no such key.
    """
    recipes = PROJECT / "recipes"
    folder = recipes / corpus / "wap_adapter" / "hparams"
    own = (folder / f"{stage}.yaml").read_text("utf-8")
    system = recipes / "IEMOCAP" / "wap_adapter" / "hparams" / "models"
    known = _list_keys((system / "wap_sap.yaml").read_text("utf-8"))
    known.update(_list_keys(own))
    # the values below an include are those of the keys above
    below = re.search(r"^system: .*\n((?: +.*\n)+)", own, re.MULTILINE)
    for line in below[1].splitlines() if below else ():
        key, _, value = line.strip().partition(": ")
        if "!ref" in value:
            continue
        comment = known[key].partition("  #")
        known[key] = f"{key}: {value}{comment[1]}{comment[2]}"

    def fill(match):
        """Finds the line, or block, of a key."""
        if match[1] not in known:
            sys.exit(f"error: {corpus}'s {stage}.yaml has no {match[1]}.")
        return known[match[1]]

    return re.sub(r"@(\w+)@", fill, text)


def _list_keys(text):
    """Lists the lines of each key of a YAML file at its top level."""
    blocks = re.findall(r"^((\w+):.*(?:\n +.*)*)", text, re.MULTILINE)
    return {key: block for block, key in blocks}


# The checkout ----------------------------------------------------------------


def run(*command, cwd, text=None):
    """Runs a command, and ends with what it says if it fails."""
    result = subprocess.run(
        command, cwd=cwd, input=text, capture_output=True, text=True
    )
    if result.returncode != 0:
        sys.exit(
            f"error: {' '.join(map(str, command[:4]))} failed: "
            f"{result.stdout}{result.stderr}"
        )
    return result.stdout


def make_files(folder, patch=True):
    """Makes all files but the rows of recipe tests.

    Arguments
    ---------
    folder : Path
        An empty folder.
    patch : bool
        Whether ``nouns.patch`` is applied, too.
    """
    for path, text in make_python().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    for source in sorted((HERE / "files").rglob("*")):
        if source.is_file() and source.suffix != ".pyc":
            target = folder / source.relative_to(HERE / "files")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for stage in ("adapter", "classifier"):
        template = (HERE / "hparams" / f"{stage}.yaml").read_text("utf-8")
        for corpus in ("IEMOCAP", "EmoDB"):
            text = template.replace("@CORPUS@", corpus)
            module = {"IEMOCAP": "iemocap_folds_prepare.read_iemocap"}
            module = module.get(corpus, "emodb_prepare.read_emodb")
            text = text.replace("@READ@", module)
            path = f"recipes/{corpus}/wap_adapter/hparams/{stage}.yaml"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(fill_yaml(text, corpus, stage), "utf-8")
    ruff = (sys.executable, "-m", "ruff")
    run(*ruff, "check", "-q", "-n", "--fix", *FIX, ".", cwd=folder)
    run(*ruff, "format", "-q", "-n", *FORMAT_ALSO, ".", cwd=folder)
    if patch:
        difference = (HERE / "nouns.patch").read_text("utf-8")
        run("git", "apply", "-", cwd=folder, text=difference)
        # names that are not there after all, or no longer needed
        undefined = ("--isolated", "--select=F401,F821")
        run(*ruff, "check", "-q", "-n", *undefined, ".", cwd=folder)
    for path, target in LINKS.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(target)
    for path in folder.rglob("*.py") if patch else ():
        left = re.search(rf"\b{PACKAGE}\b|RecipeError", path.read_text("utf-8"))
        if left:
            sys.exit(f"error: {path.relative_to(folder)} still has {left[0]}.")


def add_rows(checkout):
    """Adds the recipe's rows to SpeechBrain's tables of recipe tests.

    Arguments
    ---------
    checkout : Path
        SpeechBrain's.

    Returns
    -------
    tables : dict
        Text by path.
    """
    tables = {}
    for rows in sorted((HERE / "rows").glob("*.csv")):
        path = f"tests/recipes/{rows.name}"
        head, *own = rows.read_text("utf-8").splitlines()
        table = checkout / path
        known = table.read_text("utf-8").splitlines() if table.exists() else []
        scripts = {row["Hparam_file"] for row in csv.DictReader([head, *own])}
        kept = [
            line
            for line in known[1:]
            if next(csv.DictReader([head, line]))["Hparam_file"] not in scripts
        ]
        tables[path] = "\n".join([head, *kept, *own]) + "\n"
    return tables


def lay_out(checkout):
    """Writes all files into a checkout, and prints what it wrote.

    Arguments
    ---------
    checkout : str
        SpeechBrain's.

    Returns
    -------
    paths : list of str
        All files, changed or not.

    Raises
    ------
    SystemExit
        If it is no checkout, or has changes of other files.
    """
    checkout = Path(checkout).resolve()
    if not (checkout / "speechbrain" / "version.txt").is_file():
        sys.exit(f"error: {checkout} is no checkout of SpeechBrain.")
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        for path, text in add_rows(checkout).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
        paths = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_symlink() or path.is_file()
        )
        status = run(
            *("git", "status", "--porcelain", "-z", "--untracked-files=all"),
            cwd=checkout,
        )
        others = {line[3:] for line in status.split("\0") if line} - {*paths}
        if others:
            sys.exit(
                f"error: {checkout} has changes of other files "
                f"({', '.join(sorted(others)[:3])}): commit or stash them."
            )
        for path in paths:
            state = _place(folder / path, checkout / path)
            print(f"{state:9} {path}")
    return paths


def _place(source, target):
    """Copies a file or a link to its place; says what became of it."""
    if source.is_symlink():
        new, old = source.readlink(), None
        if target.is_symlink():
            old = target.readlink()
    else:
        new = source.read_bytes()
        is_file = target.is_file() and not target.is_symlink()
        old = target.read_bytes() if is_file else None
    if old == new:
        return "unchanged"
    is_new = not target.exists() and not target.is_symlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy(source, target, follow_symlinks=False)
    return "new" if is_new else "changed"


def main(arguments=None):
    """Reads the command line and lays out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", help="a clean checkout of SpeechBrain")
    parser.add_argument(
        "--unpatched",
        action="store_true",
        help="only make the files to which nouns.patch applies, anywhere",
    )
    arguments = parser.parse_args(arguments)
    if arguments.unpatched:
        make_files(Path(arguments.checkout), patch=False)
    else:
        lay_out(arguments.checkout)


if __name__ == "__main__":
    main()
