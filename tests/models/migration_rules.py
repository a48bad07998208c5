"""What a migration must keep to so that servers run while it is applied (docs/decisions/0029-migrations.md).

These rules read the text. What PostgreSQL locks and reads in fact, migration_locks.py measures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from models.postgres.migrations import LOCK_TIMEOUT

# A string, a name in quotes, a body in dollars, a comment: whatever may hide a semicolon.
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<quoted>'(?:[^']|'')*'|"[^"]*"|(?P<tag>\$\w*\$).*?(?P=tag))|(?P<end>;)""",
    re.DOTALL,
)
ONE_ROW = {"sync_epoch", "schema_floor"}  # whose rows may be changed
FLOOR = re.compile(r"^UPDATE schema_floor SET oldest = '\d{4}'", re.IGNORECASE)
_PATIENCE = re.compile(r"SET LOCAL lock_timeout = '(\d{1,6})ms'")
_PER_ROW = r"gen_random_uuid|random\s*\(|clock_timestamp|nextval|\bserial\b|bigserial|GENERATED"


@dataclass(frozen=True)
class Statement:
    """Without comments; ``excused`` when the comment before it says why it may hold others up. ``sql`` is what to run,
    ``text`` the same without the bodies of functions."""

    text: str
    excused: bool
    sql: str


def statements(sql: str) -> list[Statement]:
    """The statements of a migration's first half, with single blanks, and without what is in quotes."""
    found, text, run, comment, place = [], "", "", "", 0
    for token in _TOKEN.finditer(sql):
        text += sql[place : token.start()]
        run += sql[place : token.start()]
        place = token.end()
        if token["comment"]:
            comment += token["comment"] + "\n"
        elif token["quoted"]:
            text += token["quoted"] if token["quoted"][0] != "$" else "$$"
            run += token["quoted"]
        else:
            found.append(Statement(" ".join(text.split()), "-- Locks: " in comment, run))
            text = run = comment = ""
    assert not (text + sql[place:]).strip(), "the last statement has no end"
    return found


def faults(sql: str, tables: Sequence[str] = (), earlier: str = "") -> list[str]:
    """What is wrong with a migration, before which there were these tables, and these files."""
    found = []
    sql, _, down = sql.partition("-- migrate:down")
    if statements(down):
        found.append("there is no way down: a mistake is mended by the next migration")
    head = re.search(r"^-- migrate:up(.*)$", sql, re.MULTILINE)
    if head is None:
        return [*found, "has no migrate:up"]
    parts = statements(sql[head.end() :])
    if "transaction:false" in head[1]:
        alone = r"(CREATE (UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS|DROP INDEX CONCURRENTLY IF EXISTS) "
        if len(parts) != 1 or not re.match(alone, parts[0].text):
            found.append("outside a transaction is one statement, about one index, that can be repeated")
        return found
    made = {name for part in parts if (name := _about(part.text, "CREATE TABLE"))}
    locked: set[str] = set()
    for part in parts:
        if not part.excused:
            found += [f"{fault}: {part.text[:60]}" for fault in _faults(part.text, made, set(tables), earlier)]
            locked |= set(_locked(part.text)) - made
    if any(_PATIENCE.fullmatch(part.text) for part in parts[1:]):
        found.append("a file says how long it waits for locks with only its first statement")
    found += waits(locked, patience(parts))
    takes = [part for part in parts if _takes_away(part.text) and _about(part.text, "ALTER TABLE") not in made]
    if takes and not any(FLOOR.match(part.text) for part in parts):
        found.append("takes something away, and leaves schema_floor where it is")
    return found


def patience(parts: Sequence[Statement]) -> int:
    """Milliseconds that a file waits for each lock: those of the runner, or those that it begins with."""
    own = _PATIENCE.fullmatch(parts[0].text) if parts else None
    return int(own[1]) if own else LOCK_TIMEOUT


def waits(locked: set[str], milliseconds: int) -> Iterator[str]:
    """The fault of a file that locks tables in use one after the other: the first is held while it waits for the next,
    so all of its waiting together must be no longer than that for one."""
    if len(locked) * milliseconds > LOCK_TIMEOUT:
        names, least = ", ".join(sorted(locked)), LOCK_TIMEOUT // len(locked)
        yield (
            f"locks {names}: who waits for the second holds the first. Make a file for each, "
            f"or begin with SET LOCAL lock_timeout = '{least}ms'"
        )


def _locked(text: str) -> Iterator[str]:
    """The tables that a statement locks against writers, or against everybody; also those that a foreign key names."""
    if _has(text, r"\bVALIDATE CONSTRAINT\b"):
        return  # SHARE UPDATE EXCLUSIVE, and ROW SHARE on the table that is referred to: both let writers go on
    attached = re.findall(r"\bATTACH PARTITION (?:public\.)?(\w+)", text, re.IGNORECASE)
    yield from attached
    for what in ("ALTER TABLE", "DROP TABLE"):
        if not attached and (table := _about(text, what)):
            yield table
    if re.match(r"(CREATE|ALTER|DROP) (OR REPLACE )?(CONSTRAINT )?(TRIGGER|RULE|POLICY)\b", text, re.IGNORECASE):
        yield from re.findall(r"\b(?:ON|TO) (?:public\.)?(\w+)", text, re.IGNORECASE)[:1]
    if _has(text, r"^(CREATE|ALTER) TABLE\b"):
        yield from re.findall(r"\bREFERENCES (?:public\.)?(\w+)", text, re.IGNORECASE)
        yield from re.findall(r"\bDETACH PARTITION (?:public\.)?(\w+)", text, re.IGNORECASE)


def _has(text: str, pattern: str) -> bool:
    return bool(re.search(pattern, text, re.IGNORECASE))


def _about(text: str, what: str) -> str | None:
    named = re.match(rf"{what} (?:IF (?:NOT )?EXISTS )?(?:ONLY )?(?:public\.)?(\w+)", text, re.IGNORECASE)
    return named[1] if named else None


def _takes_away(text: str) -> bool:
    return _has(text, r"^DROP (TABLE|FUNCTION|TYPE|VIEW)|\bDROP COLUMN|\bRENAME\b")


def _faults(text: str, made: set[str], tables: set[str], earlier: str) -> Iterator[str]:
    if re.match(r"(LOCK|CLUSTER|VACUUM|REINDEX|TRUNCATE)\b", text, re.IGNORECASE):
        yield "keeps everybody out"
    if re.match(r"SET (LOCAL |SESSION )?(lock|statement)_timeout", text, re.IGNORECASE):
        less = _PATIENCE.fullmatch(text)
        if not (less and 0 < int(less[1]) <= LOCK_TIMEOUT):
            yield "the runner says how long to wait; a file may begin with SET LOCAL lock_timeout = '…ms', for less"
    index = re.match(r"CREATE (?:UNIQUE )?INDEX .*?\bON (?:ONLY )?(\w+)", text, re.IGNORECASE)
    if index and index[1] not in made:
        yield "an index of a table that is in use is built CONCURRENTLY, in a separate file"
    rows = re.match(r"(?:UPDATE|DELETE FROM|INSERT INTO) (\w+)", text, re.IGNORECASE)
    if rows and rows[1] in tables - ONE_ROW and rows[1] not in made and not text.upper().startswith("INSERT"):
        yield "rows of a table that is in use are changed in batches, by a script"
    table = _about(text, "ALTER TABLE")
    if table is None or table in made:
        return
    if _has(text, r"\bTYPE\b"):
        yield "another type rewrites the table"
    for column in re.findall(r"ALTER (?:COLUMN )?(\w+) SET NOT NULL", text, re.IGNORECASE):
        proof = rf"CHECK \({column} IS NOT NULL\) NOT VALID.*VALIDATE CONSTRAINT"
        if not re.search(proof, earlier, re.IGNORECASE | re.DOTALL):
            yield "NOT NULL wants a CHECK that was validated before, or it reads the whole table"
    for column in re.split(r", (?=ADD|ALTER|DROP|SET)", text):
        if _has(column, r"\bADD (COLUMN )?(?!CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN)\w+ "):
            if _has(column, r"\bNOT NULL\b") and not _has(column, r"\bDEFAULT\b"):
                yield "NOT NULL wants a default: older servers don't know the column"
            if _has(column, _PER_ROW):
                yield "a value for each row rewrites the table"
        if _has(column, r"\b(CHECK|REFERENCES|FOREIGN KEY)\b") and "NOT VALID" not in column.upper():
            yield "a constraint is added NOT VALID, and validated by the next migration"
        if _has(column, r"\bADD\b.*\b(UNIQUE|PRIMARY KEY)\b") and "USING INDEX" not in column.upper():
            yield "a unique constraint takes an index that is there: USING INDEX"
    if _has(text, r"NOT VALID") and _has(text, r"VALIDATE CONSTRAINT"):
        yield "is validated under the lock that added it"
