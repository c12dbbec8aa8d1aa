"""Options every test run knows."""

import signal

import pytest
import structlog
from hypothesis import settings

# How long an example takes on a busy machine says nothing; a test that hangs meets its own timeout.
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")


def pytest_configure() -> None:
    # A shell has what it starts in the background ignore Ctrl-C, and so would the programs under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A test that runs a command line in process sets logging up; the next one starts afresh."""
    yield
    structlog.reset_defaults()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--forbid-skips",
        action="store_true",
        help="fail when a test was skipped that is not marked optional (.ci/run)",
    )
    parser.addoption(
        "--storm-kills",
        type=int,
        default=100,
        metavar="N",
        help="kills of the broker and kills of agents in the full storm (make test-long)",
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
