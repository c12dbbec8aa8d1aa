"""Keeps the update metadata at the broker, each file a retained message.

What people sign offline is put into the directory by `shoal trust install`; this looks there again and again
(`keeping` signs snapshot and timestamp on the way). A restart says nothing anew that the broker has: what was
handed to the bus stands in a file.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

import structlog

from shoal_broker.bus_errors import BusError
from shoal_broker.durable import write_durably
from shoal_broker.session import Session
from shoal_contract.topics import EVERYBODY, Topics
from shoal_fleet.errors import FleetError, RequestError, StateError
from shoal_fleet.releases import Release
from shoal_fleet.signed_list import SignedList
from shoal_fleet.trust.places import metadata_dir, online_key_file, published_file

log = structlog.get_logger(__name__)

LOOK_S: Final = 2.0
EVERY: Final = timedelta(minutes=1)
"""Whatever stands in the directory is read so often; at once when it changed."""
ALARM_EVERY_S: Final = 86400.0
SETTLED_NS: Final = 1_000_000_000


class Distribution:
    """The controller's part of the signed record; without a directory it has nothing to do.

    Attributes:
        sent_bytes: bytes of metadata handed to the bus since the start.
        alarms: what runs out, for people with keys.
    """

    def __init__(self, state_dir: Path, session: Session, topics: Topics) -> None:
        self.sent_bytes = 0
        self.alarms: tuple[str, ...] = ()
        self._state_dir = state_dir
        self._session = session
        self._topics = topics
        self._published: dict[str, str] | None = None
        self._said_s: dict[str, float] = {}
        self._is_forgotten = False
        self._looked: tuple[int, ...] = ()
        self._looked_at: datetime | None = None
        self._listed: SignedList | None = None
        self._listed_stamp = 0

    def forget(self) -> None:
        """The broker may have lost what it retained: say it all once more."""
        self._is_forgotten = True

    async def check_listed(self, release: Release, groups: Collection[str | None]) -> None:
        """Whether boards in these groups (None: without one) would run it, as far as is known here.

        Raises:
            RequestError: they would not; the message says what to do.
            StateError: the metadata cannot be read.
        """
        listed = await self.listed()
        if listed is None:
            return
        if listed.unreadable:
            raise StateError(listed.unreadable)
        missing = sorted(
            {
                group or EVERYBODY
                for group in groups
                if not listed.has(release.name, release.id, group)
            }
        )
        if missing:
            raise RequestError(
                f"nobody has signed {release.title} for {', '.join(missing[:5])}: the boards would refuse it;"
                f" shoal trust sign DIR --key KEY --group {missing[0]} --add RELEASE, then shoal trust install DIR"
            )

    async def listed(self) -> SignedList | None:
        """Which releases are signed for whom, read anew when something was put there; None: this fleet signs none."""
        directory = metadata_dir(self._state_dir)
        try:
            stamp = directory.stat().st_mtime_ns
        except OSError:
            return None
        if self._listed is None or self._listed.unreadable or stamp != self._listed_stamp:
            from shoal_fleet.trust.listing import read_signed_list  # noqa: PLC0415 - as in `sync`

            # A change within one tick of the file system's clock shows no other time: looked at again.
            is_settled = time.time_ns() - stamp > SETTLED_NS
            self._listed = await asyncio.to_thread(read_signed_list, directory)
            self._listed_stamp = stamp if is_settled else 0
        return self._listed

    async def run(self) -> NoReturn:
        """Look, sign and publish for ever; what fails is said and tried again."""
        failure = ""
        while True:
            try:
                await self.sync(datetime.now(UTC))
                failure = ""
            except (BusError, FleetError) as exc:
                if str(exc) != failure:
                    failure = str(exc)
                    log.error("update metadata waits", reason=failure)  # noqa: TRY400 - the message says it all
            await asyncio.sleep(LOOK_S)

    async def sync(self, now: datetime) -> list[str]:
        """One look; returns the names of what went to the broker, the timestamp last.

        Raises:
            BusError: the outbox does not take it.
            FleetError: the directory or the key cannot be used.
        """
        if not metadata_dir(self._state_dir).is_dir():
            return []
        stamps = self._stamps()
        is_recent = self._looked_at is not None and now - self._looked_at < EVERY
        if is_recent and stamps == self._looked and not self._is_forgotten:
            return []
        # Imported here: a controller without signed releases needs neither python-tuf nor cryptography.
        from shoal_fleet.trust import keeping  # noqa: PLC0415 - see above

        standing = await asyncio.to_thread(keeping.look, self._state_dir, now=now)
        for role in standing.renewed:
            log.info("update metadata signed", role=role)
        self._raise_alarms(standing.alarms, now)
        published = dict(self._published_before())
        if self._is_forgotten:
            # Before anything is sent: the connection may be a new one again meanwhile.
            self._is_forgotten = False
            published = dict.fromkeys(published, "")
        sent = await self._send(published, standing.files)
        keeping.remove_old_snapshots(self._state_dir)
        self._looked, self._looked_at = self._stamps(), now
        return sent

    def _stamps(self) -> tuple[int, ...]:
        """Differ when something was put there."""
        try:
            paths = (metadata_dir(self._state_dir), online_key_file(self._state_dir))
            return tuple(path.stat().st_mtime_ns for path in paths)
        except OSError:
            return ()

    async def _send(self, published: dict[str, str], files: Mapping[str, bytes]) -> list[str]:
        """Publish what differs, take back what nobody needs any more; what was done is remembered."""
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        sent = [name for name in files if published.get(name) != digests[name]]
        gone = [name for name in published if name not in files]
        for name in (*sent, *gone):
            await self._publish(name, files.get(name, b""))
        if sent or gone:
            self._remember(digests)
        return sent

    async def _publish(self, name: str, data: bytes) -> None:
        await self._session.publish(
            self._topics.update(name), data, retain=True, coalesce_key=f"update {name}"
        )
        self.sent_bytes += len(data)

    def _published_before(self) -> dict[str, str]:
        if self._published is None:
            try:
                found = json.loads(published_file(self._state_dir).read_bytes())
                self._published = {str(name): str(digest) for name, digest in found.items()}
            except (OSError, ValueError, AttributeError):
                # Said once more than needed, rather than once less.
                self._published = {}
        return self._published

    def _remember(self, published: dict[str, str]) -> None:
        self._published = published
        path = published_file(self._state_dir)
        try:
            write_durably(path, json.dumps(published).encode())
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc

    def _raise_alarms(self, alarms: tuple[str, ...], now: datetime) -> None:
        """Say once a day what is about to run out: only people with keys can help."""
        self.alarms = alarms
        for alarm in alarms:
            role = alarm.partition(":")[0]
            if now.timestamp() - self._said_s.get(role, 0.0) >= ALARM_EVERY_S:
                self._said_s[role] = now.timestamp()
                log.error("update metadata runs out", what=alarm)
