"""The package's rooms: imports go downwards only, scripts name no system."""

import ast
from pathlib import Path

import pytest

# From the lowest to the highest; the paper's nouns lie flat in the package
ROOMS = (
    {"errors", "files"},
    {"nouns"},
    {"encoders"},
    {"data"},
    {"features"},
    {"training"},
    {"evaluation"},
    {"__main__", "inference"},
)


def find_room(parts):
    """Names the room of a module, whose name is given in parts."""
    is_flat = len(parts) == 1 and parts[0] not in ("errors", "files")
    is_door = parts[0] in ("__main__", "inference")
    return "nouns" if (is_flat and not is_door) or is_noun(parts) else parts[0]


def is_noun(parts):
    """Tells whether a module is another system than the paper's."""
    return parts[0] == "baselines"


def list_imports(package):
    """Lists which module of the package imports which."""
    imports = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = node.module.split(".")
                if names[0] == package.name:
                    imports.append((parts, tuple(names[1:])))
    return imports


@pytest.fixture(scope="module")
def imports(repository):
    """All imports within the package."""
    found = list_imports(repository / "speechbrain_wap")
    assert len(found) > 50
    return found


def test_imports_go_downwards_only(imports):
    height = {room: n for n, rooms in enumerate(ROOMS) for room in rooms}
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
