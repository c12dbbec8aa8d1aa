"""Options every test run knows."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--forbid-skips",
        action="store_true",
        help="fail when a test was skipped that is not marked optional (.ci/run)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if (
        report.skipped
        and item.config.getoption("--forbid-skips")
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("optional") is None
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped where it must run: {report.longrepr}"
    return report
