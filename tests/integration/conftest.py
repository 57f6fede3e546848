"""What all runs from end to end share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_list_of_packages():
    """SpeechBrain lists all packages at each start, half of a short run's time.

    What is started as a process of its own still does.
    """
    name = "speechbrain.utils.logger.get_environment_description"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, lambda: "")
        yield
