"""Bad rows: planted in a database, so that a statement which deletes or changes one of them fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


async def plant(db: Any, keys: Mapping[str, str], number: int) -> None:
    """So many rows of each kind that can't be deleted or changed: the first, and some between."""
    await db.execute(
        """CREATE TABLE planted (tab text, key text, PRIMARY KEY (tab, key));
           CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN
               IF EXISTS (SELECT 1 FROM planted WHERE tab = TG_TABLE_NAME AND key = to_jsonb(OLD) ->> TG_ARGV[0]) THEN
                   RAISE EXCEPTION 'planted';
               END IF;
               RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
           END $$"""
    )
    for table, key in keys.items():
        kinds = ", last_resort" if table == "kyber_prekeys" else ""
        await db.execute(
            f"""INSERT INTO planted SELECT '{table}', key FROM (
                    SELECT to_jsonb(t) ->> '{key}' AS key,
                           row_number() OVER (PARTITION BY 1{kinds} ORDER BY ctid) AS nth FROM {table} AS t) AS rows
                WHERE nth <= {number} / 2 OR nth > 10 + {number} / 2 AND nth <= 10 + {number}"""
        )
        await db.execute(
            f"""CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON {table}
                FOR EACH ROW EXECUTE FUNCTION refuse('{key}')"""
        )
