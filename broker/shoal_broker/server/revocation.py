"""Looks whether a list of revoked certificates was replaced, and has the broker go by the new one at once.

A look is one stat a file. A list that cannot be used leaves the earlier one in force and is one line
in the log; a list that ends soon, or has ended, is one, too. Which connections end the broker knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

import structlog

from shoal_broker.errors import CertificateFileError
from shoal_broker.server.config import Tls
from shoal_broker.server.tls import Secured, Stamp, revoked_in, server_context, stamp_of

LOOK_EVERY_S: Final = 0.5
RETRY_S: Final = 5.0
"""A list that could not be used is looked at again, changed or not: the fault may lie in another file."""
WARN_BEFORE: Final = timedelta(days=1)
WARN_EVERY_S: Final = 86_400.0

log = structlog.get_logger("shoal_broker")


class Revocations:
    """Watches the lists that `secured` goes by; `use` is given all listeners' when one has changed."""

    def __init__(
        self,
        secured: Callable[[], Mapping[Tls, Secured]],
        use: Callable[[Mapping[Tls, Secured]], None],
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._secured = secured
        self._use = use
        self._clock = clock
        self._now = now
        self._failed: dict[Tls, tuple[Stamp | None, float]] = {}
        self._warned_s: dict[Path, float] = {}

    async def run(self) -> NoReturn:
        """Look for as long as the broker runs."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look once."""
        known = {
            tls: secured for tls, secured in self._secured().items() if tls.crl_file is not None
        }
        found = await asyncio.to_thread(self._read_changed, known)
        # Files may have been read again meanwhile: what is newer than ours stays.
        current = self._secured()
        changed = {tls: new for tls, new in found.items() if current.get(tls) is known[tls]}
        if changed:
            self._use({**current, **changed})
            for tls, new in changed.items():
                self._warned_s.pop(_list_of(tls), None)
                log.info(
                    "list of revoked certificates read",
                    crl_file=str(tls.crl_file),
                    revoked=len(new.revoked.numbers),
                )
        for tls, secured in self._secured().items():
            self._warn(tls, secured)

    def _read_changed(self, known: Mapping[Tls, Secured]) -> dict[Tls, Secured]:
        """In a thread: the listeners whose list is another one, with it."""
        found = {}
        for tls, secured in known.items():
            stamp = stamp_of(_list_of(tls))
            if stamp == secured.stamp and tls not in self._failed:
                continue
            failed_stamp, again_s = self._failed.get(tls, (None, 0.0))
            if tls in self._failed and stamp == failed_stamp and self._clock() < again_s:
                continue
            new = self._read(tls, secured, stamp)
            if new is not None:
                found[tls] = new
        return found

    def _read(self, tls: Tls, secured: Secured, stamp: Stamp | None) -> Secured | None:
        try:
            revoked = revoked_in(_list_of(tls))
        except CertificateFileError as exc:
            self._note(
                tls, stamp, "list of revoked certificates unusable, the earlier one stays", exc
            )
            return None
        try:
            context = server_context(tls)
        except CertificateFileError as exc:
            # The list is good, and another file is not: a certificate that is being renewed, say.
            self._note(tls, stamp, "files unusable, the earlier ones stay", exc)
            return None if revoked == secured.revoked else replace(secured, revoked=revoked)
        self._failed.pop(tls, None)
        return Secured(context, revoked, stamp)

    def _note(self, tls: Tls, stamp: Stamp | None, event: str, error: CertificateFileError) -> None:
        is_told = self._failed.get(tls, (False, 0.0))[0] == stamp
        self._failed[tls] = stamp, self._clock() + RETRY_S
        if not is_told:
            log.error(event, error=str(error))

    def _warn(self, tls: Tls, secured: Secured) -> None:
        """Say once a day that a list ends: from then on nobody new gets in."""
        ends = secured.revoked.ends
        if tls.crl_file is None or ends is None:
            return
        left = ends - self._now()
        path, now_s = tls.crl_file, self._clock()
        if left > WARN_BEFORE or now_s < self._warned_s.get(path, -WARN_EVERY_S) + WARN_EVERY_S:
            return
        self._warned_s[path] = now_s
        if left > timedelta(0):
            log.warning("list of revoked certificates ends", crl_file=str(path), ends=str(ends))
        else:
            log.error(
                "list of revoked certificates has ended, nobody can connect",
                crl_file=str(path),
                ended=str(ends),
            )


def _list_of(tls: Tls) -> Path:
    if tls.crl_file is None:
        raise AssertionError("no list to look at")
    return tls.crl_file
