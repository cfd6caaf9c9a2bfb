-- A journal that version 4 wrote, as SQLite dumps it.
PRAGMA application_id = 1970695539;
PRAGMA user_version = 4;
BEGIN TRANSACTION;
CREATE TABLE refs (
            id INTEGER PRIMARY KEY, vm INTEGER NOT NULL, name INTEGER NOT NULL, owner TEXT NOT NULL, sum INTEGER NOT NULL DEFAULT 0,
            UNIQUE (vm, name, owner)
        );
INSERT INTO "refs" VALUES(1,2,2,'b',3338625640);
INSERT INTO "refs" VALUES(2,2,2,'a',3300514865);
INSERT INTO "refs" VALUES(3,2,4,'a',2808736011);
INSERT INTO "refs" VALUES(4,2,5,'a',18801343);
CREATE TABLE shares (
            vm INTEGER NOT NULL, name INTEGER NOT NULL, phase TEXT NOT NULL,
            host_path TEXT NOT NULL, read_only INTEGER NOT NULL, allowed_names TEXT NOT NULL,
            anonymous INTEGER NOT NULL DEFAULT 0, sum INTEGER NOT NULL DEFAULT 0, directory TEXT, hide TEXT NOT NULL DEFAULT '[]', map_owner TEXT,
            PRIMARY KEY (vm, name)
        ) WITHOUT ROWID;
INSERT INTO "shares" VALUES(1,2,'added','/srv/another',0,'[]',0,2849074646,NULL,'[]',NULL);
INSERT INTO "shares" VALUES(2,0,'pending','/srv/0',0,'[]',0,2040148062,NULL,'[]',NULL);
INSERT INTO "shares" VALUES(2,1,'adding','/srv/1',0,'[]',0,4093500931,NULL,'[]',NULL);
INSERT INTO "shares" VALUES(2,2,'adding','/srv/2',0,'[]',0,314534657,NULL,'[]',NULL);
INSERT INTO "shares" VALUES(2,3,'adding','/srv/3',0,'[]',2,2270130547,NULL,'[]',NULL);
INSERT INTO "shares" VALUES(2,4,'added','/srv/4',1,'["a","b"]',1,3640950765,NULL,'["*.key"]','1000:0');
INSERT INTO "shares" VALUES(2,5,'removing','/srv/5',0,'[]',0,1690027229,NULL,'[]',NULL);
INSERT INTO "shares" VALUES(2,6,'in doubt','/srv/6',0,'[]',0,2740015229,NULL,'[]',NULL);
INSERT INTO "shares" VALUES(2,7,'not ours','/srv/7',0,'[]',0,4253791175,NULL,'[]',NULL);
CREATE TABLE vms (id INTEGER PRIMARY KEY, vm TEXT NOT NULL UNIQUE, next_name INTEGER NOT NULL DEFAULT 0, sum INTEGER NOT NULL DEFAULT 0);
INSERT INTO "vms" VALUES(1,'another',3,662210161);
INSERT INTO "vms" VALUES(2,'vm',64,3705313301);
COMMIT;
