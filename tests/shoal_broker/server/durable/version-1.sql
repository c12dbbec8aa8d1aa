BEGIN TRANSACTION;
CREATE TABLE clock (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    time_ms INTEGER NOT NULL,  -- of the broker's own time: see timeline.py
    wall_ms INTEGER NOT NULL   -- what the wall clock said then
);
INSERT INTO "clock" VALUES(1,1000000,1793000000000);
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    publisher TEXT NOT NULL,
    expires_at_ms INTEGER,
    packet BLOB NOT NULL       -- a PUBLISH packet with its topic, without an alias
);
INSERT INTO "message" VALUES(1,'p',NULL,X'331900056F6C642F310001070300047465787472657461696E6564');
INSERT INTO "message" VALUES(2,'p',NULL,X'330D00056F6C642F32000200647565');
INSERT INTO "message" VALUES(3,'p',NULL,X'331200056F6C642F330003006475652C20746F6F');
INSERT INTO "message" VALUES(4,'p',NULL,X'34100003742F31000B0072656C6561736564');
INSERT INTO "message" VALUES(5,'p',NULL,X'321F0003742F320004120800046261636B090001632600016B0001767761697473');
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
INSERT INTO "queued" VALUES(1,3,NULL,2,1,0,0,NULL,NULL);
INSERT INTO "queued" VALUES(2,2,4,0,NULL,1,0,NULL,'$share/s/t/#');
INSERT INTO "queued" VALUES(4,3,2,1,NULL,0,0,NULL,'old/#');
INSERT INTO "queued" VALUES(5,3,3,1,NULL,0,0,NULL,'old/#');
INSERT INTO "queued" VALUES(6,3,1,0,2,1,1,NULL,NULL);
INSERT INTO "queued" VALUES(7,3,5,0,NULL,1,0,'7',NULL);
INSERT INTO "queued" VALUES(8,2,5,0,NULL,1,0,NULL,'$share/s/t/#');
CREATE TABLE received (
    session INTEGER NOT NULL,
    packet_id INTEGER NOT NULL,
    PRIMARY KEY (session, packet_id)
) WITHOUT ROWID;
INSERT INTO "received" VALUES(1,11);
CREATE TABLE retained (
    message INTEGER PRIMARY KEY
);
INSERT INTO "retained" VALUES(1);
INSERT INTO "retained" VALUES(2);
INSERT INTO "retained" VALUES(3);
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
INSERT INTO "session" VALUES(1,'p',NULL,4294967295,NULL,X'320C0003772F70000100676F6E65',60,1060000);
INSERT INTO "session" VALUES(2,'member',NULL,4294967295,NULL,NULL,0,NULL);
INSERT INTO "session" VALUES(3,'r',NULL,86400,87400000,NULL,0,NULL);
CREATE TABLE shoal_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "shoal_schema" VALUES('broker',1);
CREATE TABLE subscription (
    session INTEGER NOT NULL,
    filter TEXT NOT NULL,      -- as the client wrote it, $share included
    max_qos INTEGER NOT NULL,
    no_local INTEGER NOT NULL,
    retain_as_published INTEGER NOT NULL,
    identifier INTEGER,
    PRIMARY KEY (session, filter)
) WITHOUT ROWID;
INSERT INTO "subscription" VALUES(2,'$share/s/t/#',1,0,0,NULL);
INSERT INTO "subscription" VALUES(3,'old/#',1,0,0,NULL);
INSERT INTO "subscription" VALUES(3,'t/#',2,1,1,7);
COMMIT;
