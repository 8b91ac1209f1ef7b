"""The file of a checkpoint: SQLite, in WAL mode, held by one run at a time.

Guarantees that a file which is not one of ours, or is damaged anywhere, is refused before anything
of it is used; that a second run of any process on the same file is refused; and that a SIGKILL at
any moment leaves a file with all that was committed before.

The values are pickles: **whoever can write the file can run code in the process that reads it.**
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pickle
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from handoff_actors.cluster.payload import Payload, dumps, loads
from handoff_actors.errors import CheckpointError, ConfigurationError, describe

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
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"checkpoint= is the path of a file, not {describe(path)}"
            ) from None
        if "\0" in str(self.path) or isinstance(path, bytes):
            raise ConfigurationError(f"checkpoint= is the path of a file, not {describe(path)}")
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"checkpoint={str(path)!r}: there is no folder for it")
        if self.path.is_dir():
            raise ConfigurationError(f"checkpoint={str(path)!r} is a folder; give it a file")
        try:
            self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._error(f"cannot be opened: {error}") from error
        try:
            self._database = self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> sqlite3.Connection:
        # SQLite's own locks are gone as soon as anybody in this process closes the file: this one
        # is of the descriptor, and goes with the process.
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise self._error("is in use by another run, here or in another process") from None
        if os.pread(self._lock, 16, 0) not in (b"", b"SQLite format 3\0"):
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
                raise self._error(
                    f"has format {version}; this version of the library has {_FORMAT}"
                )
            self._check(database)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            database.close()
            if getattr(error, "sqlite_errorcode", None) in (
                sqlite3.SQLITE_BUSY,
                sqlite3.SQLITE_LOCKED,
            ):
                raise CheckpointError(
                    f"checkpoint {str(self.path)!r} is in use by another program, which has it "
                    "open as an SQLite database: close it there",
                    path=str(self.path),
                ) from error
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
                    with contextlib.suppress(Exception):
                        # What cannot be read here, as a module has changed, is made again.
                        found[key] = unpack(row[0])
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
        os.close(self._lock)


def pack(value: Any, what: str) -> bytes:
    """A value as it stands in a file.

    What the script defines is told by its name, as the script will be there again; what has no
    name goes by value.

    Raises:
        SerializationError: it cannot be pickled.
    """
    try:
        return b"P" + pickle.dumps(value, 5)
    except Exception:  # any reducer may raise anything; the slow way says what
        payload = dumps(value, what)
        buffers = [bytes(memoryview(buffer)) for buffer in payload.buffers]
        return b"V" + pickle.dumps(Payload(payload.head, buffers), 5)


def unpack(packed: bytes) -> Any:
    """The value that was packed; raises whatever keeps it from being read here."""
    value = pickle.loads(memoryview(packed)[1:])
    return loads(value) if packed[:1] == b"V" else value


def _sum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16, key=key).digest()
