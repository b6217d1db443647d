"""A connection to a store's SQLite file: opened with care, its errors one line each."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchlab.spec import UserError
from batchlab.store.schema import APPLICATION, FILE, VERSION, create, migrate

BUSY_S = 30.0  # another writer's transaction takes milliseconds
REPAIR = "`batchlab store check` says what is damaged, `batchlab store repair` saves the rest"


class Connection:
    """Opens the file of the store at `root`, makes it where there is none, and updates an old one.

    Raises `UserError` where the place is not writable, not a store, damaged, or written by a
    newer version.
    """

    def __init__(self, root: Path, *, create_it: bool) -> None:
        self.root = root
        path = root / FILE
        if path.is_symlink():
            raise UserError(f"store {root}: {FILE} is a link out of the store; put the file there")
        with self.translated():
            if not path.exists():
                if not create_it:
                    raise UserError(f"store {root}: no store there (no {FILE}); name one that is")
                _make_room(root)
                create(path)
            elif not path.stat().st_size:  # none of ours is ever empty
                raise self.damaged("the file is empty")
            self.db = self._open(path)
            try:
                self._look(self.db)
                if create_it:
                    with self.transaction():  # fails now, not after hours of training
                        self.db.execute("DELETE FROM run WHERE id IS NULL")
            except BaseException:
                self.db.close()
                raise

    def _open(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
        try:
            db.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError:
            db.close()
            wal = path.with_name(f"{FILE}-wal")
            if wal.exists() and wal.stat().st_size:
                raise
            # On a medium that can't be written SQLite can't set up its log, and needs none.
            uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            db = sqlite3.connect(uri, uri=True, isolation_level=None)
        return db

    def _look(self, db: sqlite3.Connection) -> None:
        # A store is data: nothing in its schema may do anything.
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA synchronous = FULL")
        kinds = {kind for (kind,) in db.execute("SELECT type FROM sqlite_master")}
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION or not kinds <= {"table", "index"}:
            raise UserError(f"store {self.root}: {FILE} is a database of another program")
        version = self._version()
        if version > VERSION:
            raise UserError(
                f"store {self.root}: written by a newer batchlab (format {version}, this one "
                f"reads up to {VERSION}); upgrade batchlab or name another store"
            )
        if version < 1:
            raise self.damaged("its format has no number")
        if version < VERSION:
            with self.transaction():
                migrate(db, self._version())  # again: another process may have been faster

    def _version(self) -> int:
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        return int(version)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's changes or none of them."""
        with self.translated():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the store for all that is read in the block."""
        with self.translated():
            self.db.execute("BEGIN")
            try:
                yield
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows."""
        with self.translated():
            return self.db.execute(sql, values).fetchall()

    @contextmanager
    def translated(self) -> Iterator[None]:
        """SQLite's errors as one line that says what to do."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            line = " ".join(_said(error).split())
            raise UserError(f"store {self.root}: {line}") from None
        except UnicodeError as error:
            raise self.damaged(str(error)) from None

    def damaged(self, what: str) -> UserError:
        """The error of a store that can't be trusted."""
        return UserError(f"store {self.root}: {FILE} is damaged ({what}); {REPAIR}")


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"not writable ({error.strerror}); name a directory that is"
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"another process has kept it locked for {BUSY_S:.0f} s; try again once it is done"
    if code.startswith("SQLITE_FULL"):
        return "the disk is full; make room and give the same command again"
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return f"can't be used ({error}); is it writable?"
    if code.startswith("SQLITE_IOERR"):
        return f"can't be read or written ({error}); is the disk full or failing?"
    return f"{FILE} is damaged or no database ({error}); {REPAIR}"


def _make_room(root: Path) -> None:
    """An empty directory for a new store; one that holds something else is not taken over."""
    root.mkdir(parents=True, exist_ok=True)
    if any(not path.name.startswith(FILE) for path in root.iterdir()):
        raise UserError(
            f"store {root}: not a store (not empty, no {FILE} in it); name a store or a new "
            "directory"
        )
