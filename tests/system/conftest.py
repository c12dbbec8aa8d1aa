"""What stands here is too long-winded for `make test`, all but the demo: that is the main job."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.name != "test_demo.py":
            item.add_marker(pytest.mark.slow)
