"""What a node must remember over a power cut, as tables in its one Store.

Wanted state, what serves, the steps of an update, commands with their last answer, and whom to trust. Functions that
take a connection run inside a caller's transaction; nothing here decides.
"""

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shoal_broker.store import Store
from shoal_contract import envelope, messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import Command, CommandUpdate, Policy, State, Wanted

COMPONENT = "journal"
VERSION = 2
DDL = """
CREATE TABLE wanted (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    message BLOB NOT NULL
);
CREATE TABLE serving (
    model TEXT PRIMARY KEY,
    release BLOB NOT NULL,
    previous BLOB
) WITHOUT ROWID;
CREATE TABLE steps (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    release BLOB NOT NULL,
    step TEXT NOT NULL,
    at_ms INTEGER NOT NULL
);
CREATE TABLE refused (
    release BLOB PRIMARY KEY,
    reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE commands (
    id BLOB PRIMARY KEY,
    command BLOB NOT NULL,
    state INTEGER NOT NULL,
    answer BLOB NOT NULL,
    received_ms INTEGER NOT NULL,
    issuer BLOB NOT NULL DEFAULT x'',
    issued_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX commands_by_age ON commands (received_ms);
"""
_TRUST = """
CREATE TABLE forgotten (
    issuer BLOB PRIMARY KEY,
    issued_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE policies (
    signer BLOB PRIMARY KEY,
    message BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE clock_floor (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    at_ms INTEGER NOT NULL
);
"""
DDL += _TRUST
MIGRATIONS = {
    2: """
ALTER TABLE commands ADD COLUMN issuer BLOB NOT NULL DEFAULT x'';
ALTER TABLE commands ADD COLUMN issued_ms INTEGER NOT NULL DEFAULT 0;
"""
    + _TRUST
}

KEPT_COMMANDS = 10_000
KEPT_STEPS = 500


@dataclass(frozen=True, slots=True)
class Serving:
    """Which release of a model serves, and which one served before it."""

    release: bytes
    previous: bytes | None


class Journal:
    """Reads and writes of the tables above. Build it with `await Journal.load(store)`."""

    def __init__(
        self, store: Store, open_wanted: Callable[[bytes], bytes] = envelope.stripped
    ) -> None:
        self.store = store
        self._open_wanted = open_wanted

    @classmethod
    async def load(
        cls, store: Store, *, open_wanted: Callable[[bytes], bytes] = envelope.stripped
    ) -> "Journal":
        """Make the tables if they are not there.

        Args:
            store: holds them.
            open_wanted: the message of a wanted state that counts; raises EnvelopeError for another.

        Raises:
            StoreError: the file cannot be used, or a newer version wrote it.
        """
        await store.create(COMPONENT, version=VERSION, ddl=DDL, migrations=MIGRATIONS)
        return cls(store, open_wanted)

    # ------------------------------------------------------------- models
    async def set_wanted(self, message: bytes) -> None:
        """Remember the wanted state as it was received."""
        await self.store.write(
            lambda db: db.execute("INSERT OR REPLACE INTO wanted VALUES (1, ?)", (message,))
        )

    async def wanted(self) -> Wanted | None:
        """The newest wanted state; None before the first, or when what is kept does not count (any more)."""
        row = await self.store.read(lambda db: db.execute("SELECT message FROM wanted").fetchone())
        if row is None:
            return None
        try:
            return messages.decode_as(self._open_wanted(row[0]), Wanted)
        except ContractError:
            return None

    async def serving(self) -> dict[str, Serving]:
        """What serves, by model."""
        rows = await self.store.read(lambda db: db.execute("SELECT * FROM serving").fetchall())
        return {model: Serving(release, previous) for model, release, previous in rows}

    async def set_serving(self, model: str, serving: Serving | None) -> None:
        """The switch: from this commit on a restart serves this release. None: nothing."""

        def run(db: sqlite3.Connection) -> None:
            if serving is None:
                db.execute("DELETE FROM serving WHERE model = ?", (model,))
            else:
                db.execute(
                    "INSERT OR REPLACE INTO serving VALUES (?, ?, ?)",
                    (model, serving.release, serving.previous),
                )

        await self.store.write(run)

    async def go_back(self, model: str, previous: bytes, release: bytes, reason: str) -> None:
        """The switch back, and `release` is refused: both or neither."""

        def run(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO serving VALUES (?, ?, NULL)", (model, previous))
            db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?)", (release, reason))

        await self.store.write(run)

    async def record_step(self, model: str, release: bytes, step: str, *, at_ms: int) -> None:
        """Say what is about to be done, before it is done."""

        def run(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO steps (model, release, step, at_ms) VALUES (?, ?, ?, ?)",
                (model, release, step, at_ms),
            )
            db.execute(
                "DELETE FROM steps WHERE id <= (SELECT max(id) FROM steps) - ?", (KEPT_STEPS,)
            )

        await self.store.write(run)

    async def steps(self) -> list[tuple[str, str, str, int]]:
        """The newest steps, oldest first: model, release in hex, step, time in ms."""
        rows = await self.store.read(
            lambda db: db.execute(
                "SELECT model, hex(release), step, at_ms FROM steps ORDER BY id"
            ).fetchall()
        )
        return [(model, release.lower(), step, at_ms) for model, release, step, at_ms in rows]

    async def refuse(self, release: bytes, reason: str) -> None:
        """Never try this release again on this node (until it is forgiven)."""
        await self.store.write(
            lambda db: db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?)", (release, reason))
        )

    async def refused(self) -> dict[bytes, str]:
        """The releases that failed here, with the reason."""
        return dict(
            await self.store.read(lambda db: db.execute("SELECT * FROM refused").fetchall())
        )

    async def forgive(self, release: bytes) -> bool:
        """Let a refused release be tried again; whether there was one."""

        def run(db: sqlite3.Connection) -> bool:
            return db.execute("DELETE FROM refused WHERE release = ?", (release,)).rowcount > 0

        return await self.store.write(run)

    # ------------------------------------------------------------- commands
    async def unfinished_commands(self) -> list[tuple[Command, State]]:
        """Commands that were accepted or running when the process ended, oldest first."""
        rows = await self.store.read(
            lambda db: db.execute(
                "SELECT command, state FROM commands WHERE state <= ? ORDER BY received_ms",
                (State.RUNNING,),
            ).fetchall()
        )
        return [(messages.decode_as(command, Command), State(state)) for command, state in rows]

    # ------------------------------------------------------------- trust
    async def policies(self) -> dict[bytes, Policy]:
        """The newest policy of each signer."""
        rows = await self.store.read(lambda db: db.execute("SELECT * FROM policies").fetchall())
        return {signer: messages.decode_as(message, Policy) for signer, message in rows}

    async def set_policy(
        self, signer: bytes, policy: Policy, *, clock_floor_ms: int | None
    ) -> None:
        """A newer policy of this signer; with a clock floor also the time that has certainly come."""

        def run(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT OR REPLACE INTO policies VALUES (?, ?)", (signer, messages.encode(policy))
            )
            if clock_floor_ms is not None:
                db.execute("INSERT OR REPLACE INTO clock_floor VALUES (1, ?)", (clock_floor_ms,))

        await self.store.write(run)

    async def clock_floor_ms(self) -> int:
        """The time that has certainly come, whatever the clock says; 0: nobody has told."""
        row = await self.store.read(
            lambda db: db.execute("SELECT at_ms FROM clock_floor").fetchone()
        )
        return 0 if row is None else int(row[0])


def find_answer(db: sqlite3.Connection, command_id: bytes) -> CommandUpdate | None:
    """The newest answer to a command that came before, or None."""
    row = db.execute("SELECT answer FROM commands WHERE id = ?", (command_id,)).fetchone()
    return None if row is None else messages.decode_as(row[0], CommandUpdate)


def find_op(db: sqlite3.Connection, command_id: bytes) -> str | None:
    """The operation of a command that came before, or None."""
    row = db.execute("SELECT command FROM commands WHERE id = ?", (command_id,)).fetchone()
    return None if row is None else messages.decode_as(row[0], Command).op


def forgotten_ms(db: sqlite3.Connection, issuer: bytes) -> int:
    """The newest issue of this issuer that is not remembered any more; -1: all are."""
    row = db.execute("SELECT issued_ms FROM forgotten WHERE issuer = ?", (issuer,)).fetchone()
    return -1 if row is None else int(row[0])


def raise_clock_floor(db: sqlite3.Connection, at_ms: int) -> None:
    """This time has certainly come."""
    db.execute(
        "INSERT INTO clock_floor VALUES (1, ?)"
        " ON CONFLICT (only) DO UPDATE SET at_ms = max(at_ms, excluded.at_ms)",
        (at_ms,),
    )


def add_command(
    db: sqlite3.Connection, command: Command, answer: CommandUpdate, issuer: bytes = b""
) -> None:
    """A command seen for the first time, with its first answer and the key that signed it.

    `received_ms` always grows: it is the order in which commands came, also after the clock was set back.
    """
    db.execute(
        "INSERT INTO commands VALUES (?, ?, ?, ?,"
        " max(?, coalesce((SELECT max(received_ms) + 1 FROM commands), 0)), ?, ?)",
        (
            command.id,
            messages.encode(command),
            answer.state,
            messages.encode(answer),
            answer.at_ms,
            issuer,
            command.issued_ms,
        ),
    )


def set_answer(db: sqlite3.Connection, answer: CommandUpdate) -> bool:
    """Move a command on; False when it is final already (a final state never changes)."""
    changed = db.execute(
        "UPDATE commands SET state = ?, answer = ? WHERE id = ? AND state <= ?",
        (answer.state, messages.encode(answer), answer.id, State.RUNNING),
    )
    return changed.rowcount == 1


def forget_old_commands(db: sqlite3.Connection, states: Iterable[State]) -> None:
    """Keep the newest finished commands, so that a repeat still finds its first answer.

    Of each issuer it stays known how new the newest one is that was forgotten.
    """
    final = ",".join(str(int(state)) for state in states)
    row = db.execute(
        "SELECT received_ms FROM commands ORDER BY received_ms DESC LIMIT 1 OFFSET ?",
        (KEPT_COMMANDS - 1,),
    ).fetchone()
    if row is None:
        return
    old = f"state IN ({final}) AND received_ms < ?"
    db.execute(
        "INSERT INTO forgotten SELECT issuer, max(issued_ms) FROM commands"  # noqa: S608 - integers
        f" WHERE {old} GROUP BY issuer"
        " ON CONFLICT (issuer) DO UPDATE SET issued_ms = max(issued_ms, excluded.issued_ms)",
        row,
    )
    db.execute(f"DELETE FROM commands WHERE {old}", row)  # noqa: S608 - integers
