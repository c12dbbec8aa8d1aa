"""`make test` tries the bus on the embedded broker; on real ones it is tried in `make check` and CI."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("system") is not None:
            item.add_marker(pytest.mark.slow)
