"""The settings with which each peer is tried: what its documentation shows, and a grid around what is sensible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from rollout_fleet import Rules
from rollout_peers import Abort, AwsJobs, FlightCtl, HawkBit, Mender


@dataclass(frozen=True, slots=True)
class Setting:
    """`rules` makes them new for each rollout; the seed is not used by any of the peers."""

    name: str
    rules: Callable[[int], Rules]


def growing(first: int, factor: float, nodes: int = 10_000) -> list[int]:
    """Where groups end that begin with so many boards and grow by the factor."""
    ends, size = [first], float(first)
    while ends[-1] < nodes:
        size *= factor
        ends.append(min(nodes, ends[-1] + round(size)))
    return ends


def _hawkbit(first: int, factor: float, success: float, error: float) -> Setting:
    ends = growing(first, factor)
    shares = [(end - begin) / 10_000 for begin, end in zip([0, *ends], ends, strict=False)]
    return Setting(
        f"first {first}, x{factor:g}, success {success:g} %, error {error:g} %",
        lambda _: HawkBit(shares, success_percent=success, error_percent=error),
    )


def _aws(
    rate: float, factor: float, at: int, percent: float, least: int, minutes: float
) -> Setting:
    aborts = (Abort(percent, least), Abort(percent, least, timed_out=True))
    return Setting(
        f"{rate:g}/min, x{factor:g} at {at} succeeded, abort {percent:g} % of {least}, {minutes:g} min",
        lambda _: AwsJobs(
            base_rate=rate,
            factor=factor,
            grows_at=at,
            grows_by="succeeded",
            aborts=aborts,
            timeout_min=minutes,
        ),
    )


def _mender(first: float, factor: float, hours: float) -> Setting:
    shares, share = [first], first
    while sum(shares) < 1.0:
        share *= factor
        shares.append(share)
    phases = [(share, hours if number else 0.0) for number, share in enumerate(shares)]
    return Setting(f"{first:.1%} first, x{factor:g}, every {hours:g} h", lambda _: Mender(phases))


def _flightctl(first: int, factor: float, success: float, hours: float) -> Setting:
    limits = growing(first, factor)
    return Setting(
        f"first {first}, x{factor:g}, success {success:g} %, {hours:g} h",
        lambda _: FlightCtl(limits, success_percent=success, timeout_h=hours),
    )


PEERS: dict[str, tuple[Setting, tuple[Setting, ...]]] = {
    "hawkBit": (
        Setting(
            "5 groups, 50 %, 50 %",
            lambda _: HawkBit([0.2] * 5, success_percent=50, error_percent=50),
        ),
        tuple(
            _hawkbit(*values)
            for values in product((10, 20, 50), (2, 4), (50, 70, 80, 90), (5, 10, 30))
        ),
    ),
    "AWS IoT Jobs": (
        Setting(
            "the developer guide's example",
            lambda _: AwsJobs(
                base_rate=50,
                factor=2,
                grows_at=1000,
                grows_by="notified",
                aborts=(Abort(20, 100), Abort(50, 200, timed_out=True)),
            ),
        ),
        tuple(
            _aws(*values, 30)
            for values in product((1, 2, 5), (1.5, 2, 4), (10, 50, 200), (3, 5, 10), (10, 50))
        )
        + tuple(_aws(1, 4, 50, 5, 10, minutes) for minutes in (15, 20)),
    ),
    "Mender": (
        Setting("one phase", lambda _: Mender([(1.0, 0.0)])),
        tuple(_mender(*values) for values in product((0.002, 0.01), (2, 5), (0.25, 1, 4))),
    ),
    "flightctl": (
        Setting(
            "batches of the example, 95 %, 24 h",
            lambda _: FlightCtl([1, 0.04, 0.5, 0.8], success_percent=95, timeout_h=24),
        ),
        tuple(
            _flightctl(*values)
            for values in product((10, 20, 50), (2, 4, 8), (60, 70, 80, 85), (0.25, 0.5, 1))
        ),
    ),
}
