"""The version that the agent says it is."""

from importlib.metadata import version

import shoal_agent


def test_the_agent_says_the_version_that_is_installed():
    assert shoal_agent.__version__ == version("shoal")
