"""The tables of a durable broker, and the statements that write them.

Every table has an integer key that is given once and never again, so that changes of a row can be
coalesced by its key and rows are appended in the order in which things happened.
"""

COMPONENT = "broker"
VERSION = 1
DDL = """
CREATE TABLE clock (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    time_ms INTEGER NOT NULL,  -- of the broker's own time: see timeline.py
    wall_ms INTEGER NOT NULL   -- what the wall clock said then
);
CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    client_id TEXT NOT NULL,
    identity TEXT,             -- whose session it is; NULL: of whoever asks for the client id
    expiry_interval_s INTEGER NOT NULL,
    expires_at_ms INTEGER,     -- NULL: connected, or never
    will BLOB,                 -- a PUBLISH packet
    will_delay_s INTEGER NOT NULL,
    will_due_at_ms INTEGER     -- NULL: connected, or no will
);
CREATE TABLE subscription (
    session INTEGER NOT NULL,
    filter TEXT NOT NULL,      -- as the client wrote it, $share included
    max_qos INTEGER NOT NULL,
    no_local INTEGER NOT NULL,
    retain_as_published INTEGER NOT NULL,
    identifier INTEGER,
    PRIMARY KEY (session, filter)
) WITHOUT ROWID;
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    publisher TEXT NOT NULL,
    expires_at_ms INTEGER,
    packet BLOB NOT NULL       -- a PUBLISH packet with its topic, without an alias
);
CREATE TABLE retained (
    message INTEGER PRIMARY KEY
);
CREATE TABLE queued (
    id INTEGER PRIMARY KEY,    -- the order in which they wait
    session INTEGER NOT NULL,
    message INTEGER,           -- NULL: only a PUBREL is due
    kind INTEGER NOT NULL,     -- see Kind
    packet_id INTEGER,         -- NULL: not sent yet
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    identifiers TEXT,          -- of subscriptions, separated by blanks; NULL: none
    filter TEXT                -- of the shared subscription, or of the one that a retained message is due for
);
CREATE TABLE received (
    session INTEGER NOT NULL,
    packet_id INTEGER NOT NULL,
    PRIMARY KEY (session, packet_id)
) WITHOUT ROWID;
"""
MIGRATIONS: dict[int, str] = {}

PUT_CLOCK = "INSERT OR REPLACE INTO clock VALUES (1, ?, ?)"
PUT_SESSION = "INSERT OR REPLACE INTO session VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
PUT_SUBSCRIPTION = "INSERT OR REPLACE INTO subscription VALUES (?, ?, ?, ?, ?, ?)"
PUT_MESSAGE = "INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?)"
PUT_RETAINED = "INSERT OR REPLACE INTO retained VALUES (?)"
PUT_QUEUED = "INSERT OR REPLACE INTO queued VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
PUT_RECEIVED = "INSERT OR REPLACE INTO received VALUES (?, ?)"

DELETE_SESSION = "DELETE FROM session WHERE id = ?"
DELETE_SUBSCRIPTION = "DELETE FROM subscription WHERE session = ? AND filter = ?"
DELETE_MESSAGE = "DELETE FROM message WHERE id = ?"
DELETE_RETAINED = "DELETE FROM retained WHERE message = ?"
DELETE_QUEUED = "DELETE FROM queued WHERE id = ?"
DELETE_RECEIVED = "DELETE FROM received WHERE session = ? AND packet_id = ?"
