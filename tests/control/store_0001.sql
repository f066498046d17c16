BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE device (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name TEXT NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	tags JSON NOT NULL, 
	pool TEXT NOT NULL, 
	created_at INTEGER NOT NULL, 
	UNIQUE (name)
);
INSERT INTO "device" VALUES(1,'phone',1,'["a", "b"]','default',1700000001);
INSERT INTO "device" VALUES(3,'laptop',0,'[]','other',1700000003);
INSERT INTO "device" VALUES(4,'tv',1,'[]','default',1700000004);
CREATE TABLE device_address (
	address TEXT NOT NULL, 
	device_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	PRIMARY KEY (address), 
	FOREIGN KEY(device_id) REFERENCES device (id) ON DELETE CASCADE
);
INSERT INTO "device_address" VALUES('100.64.0.2',1,0);
INSERT INTO "device_address" VALUES('fd64::2',1,1);
INSERT INTO "device_address" VALUES('100.64.0.4',3,0);
INSERT INTO "device_address" VALUES('fd64::4',3,1);
INSERT INTO "device_address" VALUES('fd64::5',4,0);
CREATE TABLE device_key (
	id INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	public_key TEXT NOT NULL, 
	preshared_key TEXT, 
	state TEXT NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT device_key_state CHECK (state IN ('pending', 'active', 'retiring', 'revoked')), 
	FOREIGN KEY(device_id) REFERENCES device (id) ON DELETE CASCADE, 
	UNIQUE (public_key)
);
INSERT INTO "device_key" VALUES(1,1,'AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=','c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M=','active');
INSERT INTO "device_key" VALUES(3,3,'AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=',NULL,'active');
INSERT INTO "device_key" VALUES(4,4,'BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=',NULL,'active');
CREATE TABLE revision (
	id INTEGER NOT NULL, 
	value INTEGER NOT NULL, 
	PRIMARY KEY (id), 
	CONSTRAINT revision_one_row CHECK (id = 1)
);
INSERT INTO "revision" VALUES(1,8);
CREATE INDEX ix_device_key_device_id ON device_key (device_id);
CREATE UNIQUE INDEX device_key_one_active ON device_key (device_id) WHERE state = 'active';
CREATE INDEX ix_device_address_device_id ON device_address (device_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('device',5);
COMMIT;
