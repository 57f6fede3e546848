"""The package's rooms: imports go downwards only, scripts name no system."""

import ast
from pathlib import Path

import pytest

# From the lowest to the highest; the paper's nouns lie flat in the package
ROOMS = ["errors files progress", "nouns", "encoders", "data", "features"]
# What a user starts; not in the order of imports among themselves
STARTED = "__main__ export inference recognize demo_page"
STARTED += " model_card onnx_export"
ROOMS += ["training", "evaluation", "reports", "comparisons", STARTED]


def find_room(parts):
    """Names the room of a module, whose name is given in parts."""
    is_flat = len(parts) == 1
    special = ("errors", "files", "progress", *STARTED.split())
    if parts[0] == "baselines" or (is_flat and parts[0] not in special):
        return "nouns"
    return parts[0]


@pytest.fixture(scope="module")
def imports(repository):
    """Which module of the package imports which."""
    package = repository / "speechbrain_wap"
    found = []
    for path in sorted(package.rglob("*.py")):
        mine = path.relative_to(package).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                name, *theirs = node.module.split(".")
                if name == package.name and mine != ("__init__",):
                    found.append((mine, tuple(theirs)))
    assert len(found) > 50
    return found


def test_imports_go_downwards_only(imports):
    height = {
        room: n for n, rooms in enumerate(ROOMS) for room in rooms.split()
    }
    upwards = [
        (mine, theirs)
        for mine, theirs in imports
        if height[find_room(mine)] < height[find_room(theirs)]
    ]
    assert upwards == []


def test_no_two_modules_need_each_other(imports):
    below = {}
    for mine, theirs in imports:
        if mine[-1] != "__init__" and theirs != mine:
            below.setdefault(mine, set()).add(theirs)

    def visit(module, path):
        assert module not in path, " -> ".join(map(str, [*path, module]))
        for other in below.get(module, ()):
            visit(other, (*path, module))

    for module in below:
        visit(module, ())


@pytest.mark.parametrize("stage", ["adapter", "classifier"])
def test_a_train_script_knows_no_corpus_and_no_system(repository, stage):
    folder = repository / "recipes" / "IEMOCAP" / "wap_adapter"
    text = Path(folder, f"train_{stage}.py").read_text("utf-8")
    named = ["iemocap", "emodb", "ravdess", "sap_heads", "pooled_norm"]
    named += ["statisticalattentivepooling", "whisper", "hubert"]
    assert [name for name in named if name in text.lower()] == []
