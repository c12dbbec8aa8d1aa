"""A repository with everything that offline keys do, all its keys at hand: what a test signs, nodes can check."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from shoal_contract import envelope
from shoal_fleet.trust import ceremony, keys, online, signing
from shoal_fleet.trust.repository import Repository, encoded

START = datetime(2026, 11, 30, 12, tzinfo=UTC)


class Key:
    """A signer with its public half as the ceremony takes it."""

    def __init__(self) -> None:
        private = Ed25519PrivateKey.generate()
        self.signer = CryptoSigner(private)
        self.seed = private.private_bytes_raw()
        self.public = private.public_key().public_bytes_raw()


class SignedRepository:
    """Two of three root keys, targets, two groups, the online key; `now` is its time."""

    def __init__(
        self,
        directory: Path,
        *,
        groups: tuple[str, ...] = ("oslo", "bergen", "all"),
        now: datetime | None = START,
    ) -> None:
        self.now = now or datetime.now(UTC)
        self.repository = Repository(directory)
        self.roots = [Key() for _ in range(3)]
        self.targets, self.online = Key(), Key()
        self.groups = {group: Key() for group in groups}
        ceremony.begin(
            self.repository,
            roots=[key.public for key in self.roots],
            threshold=2,
            targets=[self.targets.public],
            online=self.online.public,
            groups={group: [key.public] for group, key in self.groups.items()},
            expires=self.in_days(365),
        )
        self.sign(*self.roots[:2], self.targets, *self.groups.values())
        self.renew()
        self.root_file = directory / "1.root.json"

    def in_days(self, days: float) -> datetime:
        return ceremony.in_days(days, now=self.now)

    @property
    def now_s(self) -> int:
        return int(self.now.timestamp())

    def later(self, **time: float) -> None:
        self.now += timedelta(**time)

    def sign(self, *keys: Key) -> None:
        for key in keys:
            signing.sign(self.repository, key.signer)

    def renew(self) -> list[str]:
        return online.renew(self.repository, self.online.signer, now=self.now)

    def release(
        self, group: str, *manifests: tuple[str, bytes], remove: tuple[str, ...] = ()
    ) -> None:
        """Sign these (model, manifest) for the group, and let the controller say so."""
        ceremony.list_releases(
            self.repository, group, add=manifests, remove=remove, expires=self.in_days(90)
        )
        self.sign(self.groups[group])
        self.renew()

    def rotate_online(self) -> None:
        old, self.online = self.online, Key()
        ceremony.rotate(
            self.repository,
            ceremony.ONLINE,
            old=old.public,
            new=self.online.public,
            expires=self.in_days(365),
        )
        self.sign(*self.roots[:2])
        self.renew()

    def rotate_root(self) -> None:
        """The first root key is replaced; it signs its own dismissal."""
        new = Key()
        ceremony.rotate(
            self.repository,
            Root.type,
            old=self.roots[0].public,
            new=new.public,
            expires=self.in_days(365),
        )
        self.sign(self.roots[0], self.roots[1], new)
        self.roots = [new, *self.roots[1:]]
        self.renew()

    def files(self) -> dict[str, bytes]:
        """Everything that is published, by name."""
        directory = self.repository.directory
        return {path.name: path.read_bytes() for path in sorted(directory.glob("*.json"))}

    def online_key_file(self, path: Path) -> None:
        """The online key as the controller is given it."""
        seed = self.online.seed.hex()
        public = envelope.key_text(self.online.public)
        path.write_text(json.dumps({"format": keys.FORMAT, "public": public, "seed": seed}))

    def forge(self, role: str, metadata: Any, *keys: Key) -> None:
        """Put metadata there that these keys signed, whether or not they may."""
        metadata.signatures.clear()
        for key in keys:
            metadata.sign(key.signer, append=True)
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        (self.repository.directory / name).write_bytes(encoded(metadata))
