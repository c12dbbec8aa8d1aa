"""Keeps the update metadata at the broker, each file a retained message, and signs snapshot and timestamp in time.

What people sign offline is put into the directory by `shoal trust install`; this looks there again and again.
A restart says nothing anew that the broker has: what was handed to the bus stands in `published.json`.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

import structlog
from securesystemslib.signer import Signer
from tuf.api.metadata import Root, Snapshot, Targets

from shoal_broker.bus_errors import BusError
from shoal_broker.durable import write_durably
from shoal_broker.session import Session
from shoal_contract.release_targets import TIMESTAMP_FILE
from shoal_contract.topics import Topics
from shoal_fleet.errors import FleetError, StateError
from shoal_fleet.trust import online, status
from shoal_fleet.trust.installing import metadata_dir, online_key_file
from shoal_fleet.trust.keys import open_signer
from shoal_fleet.trust.repository import Repository

log = structlog.get_logger(__name__)

LOOK_S: Final = 2.0
EVERY: Final = timedelta(minutes=1)
"""Whatever stands in the directory is read so often; at once when it changed."""
KEPT: Final = 2
"""Versions of a role that stay at the broker: a node may be in the middle of a look."""
PUBLISHED_FILE: Final = "published.json"
ALARM_EVERY_S: Final = 86400.0


class Distribution:
    """The controller's part of the signed record; without a directory it has nothing to do.

    Attributes:
        sent_bytes: bytes of metadata handed to the bus since the start.
    """

    def __init__(self, state_dir: Path, session: Session, topics: Topics) -> None:
        self.sent_bytes = 0
        self.alarms: tuple[str, ...] = ()
        self._repository = Repository(metadata_dir(state_dir))
        self._key_file = online_key_file(state_dir)
        self._session = session
        self._topics = topics
        self._published: dict[str, str] | None = None
        self._said_s: dict[str, float] = {}
        self._is_forgotten = False
        self._looked: tuple[int, ...] = ()
        self._looked_at: datetime | None = None

    def forget(self) -> None:
        """The broker may have lost what it retained: say it all once more."""
        self._is_forgotten = True

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
        stamps = self._stamps()
        is_recent = self._looked_at is not None and now - self._looked_at < EVERY
        if is_recent and stamps == self._looked and not self._is_forgotten:
            return []
        files = await asyncio.to_thread(self._renewed, now)
        published = dict(self._published_before())
        if self._is_forgotten:
            # Before anything is sent: the connection may be a new one again meanwhile.
            self._is_forgotten = False
            published = dict.fromkeys(published, "")
        sent = await self._send(published, files)
        self._looked, self._looked_at = self._stamps(), now
        return sent

    def _stamps(self) -> tuple[int, ...]:
        """Differ when something was put there; nothing there: none."""
        try:
            paths = (self._repository.directory, self._key_file)
            return tuple(path.stat().st_mtime_ns for path in paths)
        except OSError:
            return ()

    def _renewed(self, now: datetime) -> Mapping[str, bytes]:
        """What is to stand at the broker, signed anew where it is due; nothing before `shoal trust install`."""
        if not self._repository.directory.is_dir() or self._repository.root() is None:
            return {}
        for role in online.renew(self._repository, self._signer(), now=now):
            log.info("update metadata signed", role=role)
        self._raise_alarms(now)
        return self._wanted()

    async def _send(self, published: dict[str, str], files: Mapping[str, bytes]) -> list[str]:
        """Publish what differs, take back what nobody needs any more; what was done is remembered."""
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        sent = [name for name in files if published.get(name) != digests[name]]
        gone = [name for name in published if name not in files]
        for name in (*sent, *gone):
            await self._publish(name, files.get(name, b""))
        if sent or gone:
            self._remember(digests)
        for version in self._repository.versions(Snapshot.type)[:-KEPT]:
            self._repository.remove(Snapshot.type, version)
        return sent

    def _signer(self) -> Signer:
        try:
            return open_signer(self._key_file)
        except FleetError as exc:
            raise StateError(f"the online key cannot be used: {exc}") from exc

    def _wanted(self) -> Mapping[str, bytes]:
        """What is to stand at the broker: every root, of the rest the newest versions; the timestamp last."""
        paths = []
        for role in (Root.type, *self._delegated(), Targets.type, Snapshot.type):
            versions = self._repository.versions(role)
            kept = versions if role == Root.type else versions[-KEPT:]
            paths += [self._repository.file(role, version) for version in kept]
        paths.append(self._repository.directory / TIMESTAMP_FILE)
        try:
            return {path.name: path.read_bytes() for path in paths}
        except OSError as exc:
            raise StateError(f"{self._repository.directory}: {exc.strerror}") from exc

    def _delegated(self) -> list[str]:
        top = {Root.type, Targets.type, Snapshot.type}
        return [role for role in self._repository.roles() if role not in top]

    async def _publish(self, name: str, data: bytes) -> None:
        await self._session.publish(
            self._topics.update(name), data, retain=True, coalesce_key=f"update {name}"
        )
        self.sent_bytes += len(data)

    def _published_before(self) -> dict[str, str]:
        if self._published is None:
            try:
                found = json.loads(
                    (self._repository.directory.parent / PUBLISHED_FILE).read_bytes()
                )
                self._published = {str(name): str(digest) for name, digest in found.items()}
            except (OSError, ValueError, AttributeError):
                # Said once more than needed, rather than once less.
                self._published = {}
        return self._published

    def _remember(self, published: dict[str, str]) -> None:
        self._published = published
        path = self._repository.directory.parent / PUBLISHED_FILE
        try:
            write_durably(path, json.dumps(published).encode())
        except OSError as exc:
            raise StateError(f"{path}: {exc.strerror}") from exc

    def _raise_alarms(self, now: datetime) -> None:
        """Say once a day what is about to run out: only people with keys can help."""
        self.alarms = status.look(self._repository, now=now).alarms
        for alarm in self.alarms:
            role = alarm.partition(":")[0]
            if now.timestamp() - self._said_s.get(role, 0.0) >= ALARM_EVERY_S:
                self._said_s[role] = now.timestamp()
                log.error("update metadata runs out", what=alarm)
