"""Says what to install where installed packages do not go together."""

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

# torchaudio's libraries load beside some versions and builds of torch only
PAIR = ("torch", "torchaudio")


class RequirementError(ImportError):
    """Installed packages do not go together; one sentence with the cure.

    Where nothing catches it, the sentence is printed without a traceback.
    """

    def __init__(self, text):
        super().__init__(text)
        sys.excepthook = _print_sentence


def _print_sentence(kind, error, trace):
    """Ends the program with a RequirementError's sentence."""
    if issubclass(kind, RequirementError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def check_requirements():
    """Makes sure that the installed packages are those that setup.py asks for.

    pip warns once when it breaks a requirement of another package; what
    follows from it is an error somewhere deep in that package.

    Raises
    ------
    RequirementError
        If a package is missing or of another version, or torchaudio cannot be
        loaded beside the installed torch; one sentence with the pip command.
    """
    needed = _list_requirements()
    unmet = [item for item in needed.values() if not _is_met(item)]
    if unmet:
        found = ", ".join(f"{i.name} is {_find(i.name)}" for i in unmet)
        raise RequirementError(
            f"speechbrain-wap needs other packages than are installed ({found})"
            f": {_pip_install(unmet)}"
        )
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        found = " beside ".join(f"{n} {_find(n)}" for n in reversed(PAIR))
        pair = [needed.get(name, Requirement(name)) for name in PAIR]
        raise RequirementError(
            f"{found} cannot be loaded, take two that go together: "
            f"{_pip_install(pair)} --force-reinstall"
        ) from None


def _list_requirements():
    """Reads what the installed package asks for, by name."""
    try:
        texts = requires("speechbrain-wap") or []
    except PackageNotFoundError:  # a checkout that is not installed
        texts = []
    items = map(Requirement, texts)
    return {
        i.name: i
        for i in items
        if not i.marker or i.marker.evaluate({"extra": ""})
    }


def _find(name):
    """Tells a package's installed version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _is_met(requirement):
    """Tells whether a package is there in a version that will do."""
    found = _find(requirement.name)
    return found != "missing" and requirement.specifier.contains(
        found, prereleases=True
    )


def _pip_install(requirements):
    """Writes the command that installs packages."""
    return "pip install " + " ".join(f'"{item}"' for item in requirements)
