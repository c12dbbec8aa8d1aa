-- fleet.db as the last version made it that counted in steps of its own.
PRAGMA foreign_keys = OFF;
BEGIN TRANSACTION;
CREATE TABLE blobs (
    digest BLOB NOT NULL, 
    size_bytes INTEGER NOT NULL, 
    chunk_bytes INTEGER NOT NULL, 
    chunk_digests BLOB NOT NULL, 
    PRIMARY KEY (digest)
);
CREATE TABLE certificates (
    serial VARCHAR NOT NULL, 
    node VARCHAR NOT NULL, 
    "key" BLOB NOT NULL, 
    public_key BLOB NOT NULL, 
    certificate BLOB NOT NULL, 
    how VARCHAR NOT NULL, 
    issued_ms INTEGER NOT NULL, 
    not_after_ms INTEGER NOT NULL, 
    retired_ms INTEGER, 
    revoked_ms INTEGER, 
    PRIMARY KEY (serial)
);
INSERT INTO "certificates" VALUES('1f','n0',X'6B',X'70',X'63','token',1700000000000,1800000000000,NULL,NULL);
CREATE TABLE command_history (
    id INTEGER NOT NULL, 
    command BLOB NOT NULL, 
    node VARCHAR NOT NULL, 
    state INTEGER NOT NULL, 
    at_ms INTEGER NOT NULL, 
    reason VARCHAR NOT NULL, 
    PRIMARY KEY (id), 
    FOREIGN KEY(command, node) REFERENCES commands (id, node)
);
INSERT INTO "command_history" VALUES(1,X'0101010101010101','n0',3,1700000000005,'');
CREATE TABLE commands (
    id BLOB NOT NULL, 
    node VARCHAR NOT NULL, 
    "group" VARCHAR NOT NULL, 
    op VARCHAR NOT NULL, 
    args BLOB NOT NULL, 
    issued_ms INTEGER NOT NULL, 
    expires_ms INTEGER NOT NULL, 
    priority INTEGER NOT NULL, 
    state INTEGER NOT NULL, 
    presumed BOOLEAN NOT NULL, 
    progress INTEGER NOT NULL, 
    reason VARCHAR NOT NULL, 
    result BLOB, 
    by_hand BOOLEAN NOT NULL, 
    PRIMARY KEY (id, node)
);
INSERT INTO "commands" VALUES(X'0101010101010101','n0','','ping',X'A0',1700000000005,1700000000006,4,3,0,0,'',NULL,0);
CREATE TABLE decisions (
    id INTEGER NOT NULL, 
    rollout INTEGER NOT NULL, 
    at_ms INTEGER NOT NULL, 
    text VARCHAR NOT NULL, 
    PRIMARY KEY (id), 
    FOREIGN KEY(rollout) REFERENCES rollouts (id)
);
INSERT INTO "decisions" VALUES(1,1,1700000000003,'wave 1 opens');
CREATE TABLE deltas (
    base BLOB NOT NULL, 
    target BLOB NOT NULL, 
    blob BLOB, 
    PRIMARY KEY (base, target)
);
CREATE TABLE door_commands (
    command BLOB NOT NULL, 
    user VARCHAR NOT NULL, 
    node VARCHAR NOT NULL, 
    op VARCHAR NOT NULL, 
    request VARCHAR, 
    correlation BLOB, 
    done BOOLEAN NOT NULL, 
    PRIMARY KEY (command)
);
CREATE TABLE door_mirrors (
    user VARCHAR NOT NULL, 
    node VARCHAR NOT NULL, 
    PRIMARY KEY (user, node)
);
CREATE TABLE enrol_tokens (
    digest BLOB NOT NULL, 
    node VARCHAR, 
    labels JSON NOT NULL, 
    made_ms INTEGER NOT NULL, 
    expires_ms INTEGER NOT NULL, 
    used_ms INTEGER, 
    used_by VARCHAR, 
    revoked_ms INTEGER, 
    admitted BOOLEAN NOT NULL, 
    PRIMARY KEY (digest)
);
CREATE TABLE mandates (
    name VARCHAR NOT NULL, 
    "key" BLOB NOT NULL, 
    ops JSON NOT NULL, 
    groups JSON NOT NULL, 
    may_delegate BOOLEAN NOT NULL, 
    until_ms INTEGER NOT NULL, 
    made_ms INTEGER NOT NULL, 
    revoked_ms INTEGER, 
    PRIMARY KEY (name), 
    UNIQUE ("key")
);
CREATE TABLE nodes (
    name VARCHAR NOT NULL, 
    first_seen_ms INTEGER NOT NULL, 
    last_seen_ms INTEGER NOT NULL, 
    online BOOLEAN NOT NULL, 
    labels JSON NOT NULL, 
    reported BLOB, 
    wanted_revision INTEGER NOT NULL, 
    published_revision INTEGER NOT NULL, 
    PRIMARY KEY (name)
);
INSERT INTO "nodes" VALUES('n0',1700000000000,1700000000001,0,'{"site": "oslo"}',NULL,0,0);
CREATE TABLE pending_nodes (
    node VARCHAR NOT NULL, 
    "key" BLOB NOT NULL, 
    address VARCHAR NOT NULL, 
    hardware VARCHAR NOT NULL, 
    first_ms INTEGER NOT NULL, 
    last_ms INTEGER NOT NULL, 
    accepted_ms INTEGER, 
    rejected_ms INTEGER, 
    PRIMARY KEY (node, "key")
);
CREATE TABLE pipelines (
    target VARCHAR NOT NULL, 
    stream VARCHAR NOT NULL, 
    content JSON, 
    changed_ms INTEGER NOT NULL, 
    PRIMARY KEY (target, stream)
);
CREATE TABLE policies (
    node VARCHAR NOT NULL, 
    version INTEGER NOT NULL, 
    content BLOB NOT NULL, 
    command BLOB NOT NULL, 
    PRIMARY KEY (node), 
    FOREIGN KEY(node) REFERENCES nodes (name)
);
CREATE TABLE published (
    digest BLOB NOT NULL, 
    chunks INTEGER NOT NULL, 
    complete BOOLEAN NOT NULL, 
    PRIMARY KEY (digest)
);
CREATE TABLE releases (
    id BLOB NOT NULL, 
    name VARCHAR NOT NULL, 
    version VARCHAR NOT NULL, 
    description VARCHAR NOT NULL, 
    manifest BLOB NOT NULL, 
    model_file BLOB NOT NULL, 
    size_bytes INTEGER NOT NULL, 
    quality JSON NOT NULL, 
    added_ms INTEGER NOT NULL, 
    PRIMARY KEY (id), 
    UNIQUE (name, version)
);
INSERT INTO "releases" VALUES(X'1111111111111111111111111111111111111111111111111111111111111111','digits','1.0.0','',X'6D',X'2222222222222222222222222222222222222222222222222222222222222222',5,'{"accuracy": 0.97}',1700000000002);
CREATE TABLE reports (
    release BLOB NOT NULL, 
    name VARCHAR NOT NULL, 
    content BLOB NOT NULL, 
    PRIMARY KEY (release, name), 
    FOREIGN KEY(release) REFERENCES releases (id)
);
INSERT INTO "reports" VALUES(X'1111111111111111111111111111111111111111111111111111111111111111','report.json',X'7B7D');
CREATE TABLE revocations (
    node VARCHAR NOT NULL, 
    revoked_ms INTEGER NOT NULL, 
    reason VARCHAR NOT NULL, 
    PRIMARY KEY (node)
);
CREATE TABLE rollout_members (
    rollout INTEGER NOT NULL, 
    node VARCHAR NOT NULL, 
    place INTEGER NOT NULL, 
    kind VARCHAR NOT NULL, 
    standing VARCHAR NOT NULL, 
    wave INTEGER NOT NULL, 
    offered_ms INTEGER, 
    resolved_ms INTEGER, 
    reason VARCHAR NOT NULL, 
    seen BOOLEAN NOT NULL, 
    unheard_ms INTEGER NOT NULL, 
    PRIMARY KEY (rollout, node), 
    FOREIGN KEY(rollout) REFERENCES rollouts (id)
);
INSERT INTO "rollout_members" VALUES(1,'n0',0,'x','offered',1,1700000000003,NULL,'',1,0);
CREATE TABLE rollouts (
    id INTEGER NOT NULL, 
    release BLOB NOT NULL, 
    "group" VARCHAR NOT NULL, 
    status VARCHAR NOT NULL, 
    state BLOB NOT NULL, 
    created_ms INTEGER NOT NULL, 
    updated_ms INTEGER NOT NULL, 
    PRIMARY KEY (id), 
    FOREIGN KEY(release) REFERENCES releases (id)
);
INSERT INTO "rollouts" VALUES(1,X'1111111111111111111111111111111111111111111111111111111111111111','site=oslo','running',X'7B2277617665223A317D',1700000000003,1700000000004);
CREATE TABLE surfaces (
    "group" VARCHAR NOT NULL, 
    approved JSON, 
    denied JSON NOT NULL, 
    PRIMARY KEY ("group")
);
CREATE TABLE wanted (
    node VARCHAR NOT NULL, 
    model VARCHAR NOT NULL, 
    release BLOB NOT NULL, 
    previous BLOB, 
    rollout INTEGER, 
    PRIMARY KEY (node, model), 
    FOREIGN KEY(node) REFERENCES nodes (name)
);
INSERT INTO "wanted" VALUES('n0','digits',X'1111111111111111111111111111111111111111111111111111111111111111',NULL,1);
CREATE INDEX ix_commands_state ON commands (state);
CREATE INDEX ix_commands_node ON commands (node);
CREATE INDEX ix_commands_issued_ms ON commands (issued_ms);
CREATE INDEX ix_door_commands_done ON door_commands (done);
CREATE INDEX ix_releases_name ON releases (name);
CREATE INDEX ix_enrol_tokens_used_by ON enrol_tokens (used_by);
CREATE INDEX ix_certificates_node ON certificates (node);
CREATE INDEX ix_certificates_revoked_ms ON certificates (revoked_ms);
CREATE INDEX ix_command_history_command ON command_history (command);
CREATE INDEX ix_rollouts_status ON rollouts (status);
CREATE INDEX ix_decisions_rollout ON decisions (rollout);
COMMIT;
PRAGMA user_version = 4;
