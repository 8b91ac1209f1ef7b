"""The file of a checkpoint: SQLite, in WAL mode, held by one run at a time.

Guarantees that a file which is not one of ours, or is damaged anywhere, is refused before anything
of it is used; that a second run of any process on the same file is refused; and that a SIGKILL at
any moment leaves a file with all that was committed before.

The values are pickles: **whoever can write the file can run code in the process that reads it.**
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.errors import CheckpointError, ConfigurationError, SerializationError, describe

_MARK = 0x48616E64
"""SQLite's ``application_id`` of our files: "Hand"."""
_FORMAT = 1
_SCHEMA = """
CREATE TABLE results (
    key BLOB PRIMARY KEY, function TEXT NOT NULL, value BLOB NOT NULL, sum BLOB NOT NULL,
    at REAL NOT NULL
) WITHOUT ROWID
"""


class CheckpointFile:
    """See the module.

    Args:
        path: of the file, which is made if there is none, or it is empty.

    Raises:
        CheckpointError: it is in use, damaged, or none of ours.
        ConfigurationError: it is no path, or of a folder that is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(os.fspath(path))
        except TypeError:
            raise ConfigurationError(
                f"checkpoint= is the path of a file, not {describe(path)}"
            ) from None
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"checkpoint={str(path)!r}: there is no folder for it")
        if self.path.is_dir():
            raise ConfigurationError(f"checkpoint={str(path)!r} is a folder; give it a file")
        try:
            self._database = self._open()
        except OSError as error:
            raise self._error(f"cannot be opened: {error}") from error

    def _open(self) -> sqlite3.Connection:
        new = not self.path.exists() or self.path.stat().st_size == 0
        if not new:
            with open(self.path, "rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise self._error("is no checkpoint")
        database = sqlite3.connect(
            self.path, timeout=0.0, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            (mark,) = database.execute("PRAGMA application_id").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and mark != _MARK:
                raise self._error("is an SQLite database of something else")
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute("BEGIN EXCLUSIVE")
            if not tables:
                database.execute(f"PRAGMA application_id={_MARK}")
                database.execute(f"PRAGMA user_version={_FORMAT}")
                database.execute(_SCHEMA)
            database.execute("COMMIT")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != _FORMAT:
                raise self._error(f"has format {version}; this version of the library has {_FORMAT}")
            self._check(database)
        except sqlite3.Error as error:
            database.close()
            if "locked" in str(error) or "busy" in str(error):
                raise self._error("is in use by another run, here or in another process") from None
            raise self._error(f"is damaged: {error}") from error
        except BaseException:
            database.close()
            raise
        return database

    def _check(self, database: sqlite3.Connection) -> None:
        problems = [row[0] for row in database.execute("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise self._error(f"is damaged: {'; '.join(problems)}")
        for key, value, check in database.execute("SELECT key, value, sum FROM results"):
            if _sum(key, value) != check:
                raise self._error("is damaged: a result in it is not what was written")

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {str(self.path)!r} {what}. Nothing of it was used; delete it to begin "
            "anew, or give another path",
            path=str(self.path),
        )

    def read(self, keys: Iterable[bytes]) -> dict[bytes, Any]:
        """The values that the file has among these keys.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        found: dict[bytes, Any] = {}
        try:
            for key in keys:
                row = self._database.execute(
                    "SELECT value FROM results WHERE key=?", (key,)
                ).fetchone()
                if row is not None:
                    with contextlib.suppress(SerializationError, pickle.UnpicklingError):
                        # What cannot be read here, as a module has changed, is made again.
                        found[key] = loads(pickle.loads(row[0]))
        except sqlite3.Error as error:
            raise self._error(f"is damaged: {error}") from error
        return found

    def has(self, keys: Iterable[bytes]) -> set[bytes]:
        """Which of these keys the file has."""
        wanted = set(keys)
        return {key for (key,) in self._database.execute("SELECT key FROM results")} & wanted

    def write(self, values: Mapping[bytes, tuple[str, bytes]]) -> None:
        """Keep ``(function, packed value)`` by key, all in one transaction.

        Raises:
            CheckpointError: the file cannot be written.
        """
        now = time.time()
        rows = [(k, name, value, _sum(k, value), now) for k, (name, value) in values.items()]
        try:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO results VALUES (?,?,?,?,?)", rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise self._error(f"cannot be written: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(sqlite3.Error):
            self._database.close()


def pack(value: Any, what: str) -> bytes:
    """A value as it stands in a file.

    Raises:
        SerializationError: it cannot be pickled.
    """
    payload = dumps(value, what)
    return pickle.dumps(Payload(payload.head, [bytes(memoryview(b)) for b in payload.buffers]), 5)


def _sum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16, key=key).digest()
