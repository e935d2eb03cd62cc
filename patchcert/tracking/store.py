"""Where runs are recorded: addresses of stores, checked and made absolute, and the database file of a work folder.

A database file keeps its artifacts in ``mlflow-artifacts`` next to it. MLflow records their places as absolute
addresses; ``open_database`` makes them follow the folder when it was moved or copied.
"""

import contextlib
import importlib.metadata
import os
import re
import socket
import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from patchcert.addresses import masked_address, unclear_letters
from patchcert.data.storage import Folder
from patchcert.errors import TrackingError

VARIABLE = "MLFLOW_TRACKING_URI"
# Set before mlflow is imported: no telemetry, no chatter, no pickles, seconds instead of minutes for a dying server.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
ARTIFACTS = "mlflow-artifacts"
_DATABASE = "mlflow.db"
_CONNECT_SECONDS, _LOCK_SECONDS = 5.0, 120.0
_SERVERS = ("http", "https")
_DATABASES = ("postgresql", "mysql", "mssql")
_HOSTED = ("databricks", "databricks-uc", "uc")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
_WHAT_WORKS = (
    "  Give a database such as sqlite:///mlflow.db, or a server such as http://127.0.0.1:5000 (--tracking.uri or "
    f"{VARIABLE});\n  or record nothing with --tracking.mode off."
)
# Columns of MLflow's tables that hold addresses of artifacts; a version of MLflow without one of them is fine.
_ADDRESS_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def tracking_uri(uri: str | None, work_folder: Folder) -> str:
    """Choose the store: what is given, else MLFLOW_TRACKING_URI, else a database file in the work folder.

    Returns:
        Its address; a local one is absolute, whatever the current folder becomes.

    Raises:
        TrackingError: the address cannot work, or nothing is given and the work folder is on an object store.
    """
    if chosen := _chosen(uri):
        return absolute_address(chosen)
    if not work_folder.is_local:
        raise TrackingError(
            f"no tracker is named, and {work_folder} cannot hold one: a database needs a local disk.\n"
            f"  Set {VARIABLE} or --tracking.uri, or record nothing with --tracking.mode off."
        )
    return _database_address(Path(work_folder.path(_DATABASE)))


def check_address(uri: str | None) -> None:
    """Raise TrackingError for an address, given or in MLFLOW_TRACKING_URI, that cannot work; nothing is opened."""
    if chosen := _chosen(uri):
        absolute_address(chosen)


def _chosen(uri: str | None) -> str:
    return (uri or os.environ.get(VARIABLE) or "").strip()


def absolute_address(address: str) -> str:
    """Make a store's address independent of the current folder.

    Raises:
        TrackingError: it cannot be parsed, keeps nothing, or names a store that MLflow does not open.
    """
    scheme = _scheme(address)
    base = scheme.partition("+")[0]
    if letters := unclear_letters(address):
        codes = ", ".join(f"{urllib.parse.quote(letter, safe='')} for {letter!r}" for letter in letters)
        raise _refused(address, f"does not say where its password ends: write {codes} in it.")
    if scheme in _SERVERS:
        return _checked_server(address)
    if base == "sqlite":
        return _absolute_sqlite(address, scheme)
    if scheme == "file" or (not scheme and not _HOST_AND_PORT.fullmatch(address) and address not in _HOSTED):
        return _absolute_files(address)
    if base in _DATABASES and "://" in address:
        if not _port_exists(address):
            raise _refused(address, "names no port that exists.")
        return address
    if scheme in _HOSTED or address in _HOSTED or scheme in _stores_of_plugins():
        return address
    hint = f" Is it http://{address}?" if "@" not in address and _HOST_AND_PORT.fullmatch(address) else ""
    raise _refused(address, f"is neither a database nor a server that MLflow knows.{hint}")


def _refused(address: str, reason: str) -> TrackingError:
    return TrackingError(f"the tracker's address {masked_address(address)!r} {reason}\n{_WHAT_WORKS}")


def _scheme(address: str) -> str:
    try:
        return urllib.parse.urlsplit(address).scheme
    except ValueError:
        # The error itself repeats what stands before the host.
        raise _refused(address, "cannot be parsed.") from None


def _checked_server(address: str) -> str:
    if not (urllib.parse.urlsplit(address).hostname and _port_exists(address)):
        raise _refused(address, "names no host, or no port that exists.")
    return address


def _port_exists(address: str) -> bool:
    try:
        return urllib.parse.urlsplit(address).port != 0
    except ValueError:
        return False


def _absolute_sqlite(address: str, scheme: str) -> str:
    rest = address[len(scheme) + 1 :]
    path, _, options = rest.removeprefix("///").partition("?")
    if not rest.startswith("//") or (rest.startswith("//") and not rest.startswith("///") and rest != "//"):
        raise _refused(address, "is no address of a database file: sqlite is followed by :/// and a path.")
    if rest == "//" or path in ("", ":memory:") or "mode=memory" in options:
        raise _refused(address, "is a database in memory, which is gone when the command ends.")
    if path.startswith("file:"):
        # SQLite's own form, with options of its own.
        place = Path(urllib.parse.unquote(path.removeprefix("file:")))
        return address if place.is_absolute() else _database_address(Path.cwd() / place)
    # Newer versions of SQLAlchemy decode percent signs; without any, all versions read the same.
    if "%" in path:
        path = _parsed_by_sqlalchemy(f"sqlite:///{path}") or path
    return _database_address(Path(os.path.abspath(os.path.expanduser(path))), options)


def _absolute_files(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise _refused(address, "names another machine; file: addresses are of this one.")
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise TrackingError(
            f"the tracker's address {masked_address(address)!r} is a folder of files, a kind of store that MLflow has "
            "given up.\n"
            f"{_WHAT_WORKS}\n  MLFLOW_ALLOW_FILE_STORE=true makes MLflow open the folder all the same."
        )
    path = urllib.request.url2pathname(parts.path) if parts.scheme else address
    return Path(os.path.abspath(os.path.expanduser(path))).as_uri()


def _stores_of_plugins() -> set[str]:
    return {entry.name for entry in importlib.metadata.entry_points(group="mlflow.tracking_store")}


def _database_address(path: Path, options: str = "") -> str:
    """An address that SQLAlchemy and MLflow take for this file, whatever letters its path is made of."""
    end = f"?{options}" if options else ""
    if not set("%?") & set(str(path)):
        return f"sqlite:///{path}{end}"
    quoted = urllib.parse.quote(str(path))
    # Named with its driver, MLflow leaves the address alone; of the short form it would make a folder, quotes and all.
    address = f"sqlite+pysqlite:///{quoted}"
    if _parsed_by_sqlalchemy(address) == str(path):
        return address + end
    # Older versions decode nothing, but SQLite does.
    return f"sqlite+pysqlite:///file:{quoted}?uri=true" + (f"&{options}" if options else "")


def _parsed_by_sqlalchemy(address: str) -> str | None:
    # MLflow brings SQLAlchemy along; the package does not depend on it otherwise.
    prepare_environment()
    from mlflow.store.db.utils import sqlalchemy

    database: str | None = sqlalchemy.engine.make_url(address).database
    return database


def database_path(uri: str) -> Path | None:
    """File of an SQLite store, from an address that ``tracking_uri`` made; None for every other store."""
    scheme, mark, rest = uri.partition(":///")
    if not mark or scheme.partition("+")[0] != "sqlite":
        return None
    path = rest.partition("?")[0]
    return Path(path if scheme == "sqlite" else urllib.parse.unquote(path.removeprefix("file:")))


def prepare_environment() -> None:
    """Set what MLflow reads when it is imported, unless the user chose it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # What is recorded must have arrived before a run is called finished.
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"


def check_answers(uri: str) -> None:
    """Raise OSError at once for a server that is not there; MLflow itself would try for long."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in _SERVERS or not parts.hostname or parts.scheme in urllib.request.getproxies():
        return
    try:
        socket.create_connection(
            (parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]), _CONNECT_SECONDS
        ).close()
    except OSError as error:
        raise OSError(f"{parts.scheme}://{parts.hostname}:{parts.port or ''} does not answer: {error}") from None


@contextlib.contextmanager
def database_lock(uri: str) -> Iterator[None]:
    """Keep other processes from creating the same database file at once; nothing is locked for other stores."""
    database = database_path(uri)
    if database is None:
        yield
        return
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_LOCK_SECONDS):
        yield


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where a new experiment of a database file keeps its artifacts; None: the server decides."""
    database = database_path(uri)
    return None if database is None else (database.parent / ARTIFACTS / experiment).as_uri()


def follow_folder(uri: str) -> bool:
    """Make the artifacts of a database file follow it when its folder was moved or copied.

    Only addresses of the form that ``artifact_location`` makes are changed, and only where the artifacts are not
    left behind: a database that was moved alone keeps pointing at them.

    Args:
        uri: address of the store; stores that are no database file stay as they are.

    Returns:
        Whether any address was changed.
    """
    database = database_path(uri)
    if database is None or not database.is_file():
        return False
    here, moved = database.parent / ARTIFACTS, False
    with contextlib.closing(sqlite3.connect(database, timeout=_LOCK_SECONDS)) as connection:
        with contextlib.suppress(sqlite3.OperationalError):  # a database without MLflow's tables yet
            for elsewhere in _other_places(connection, here):
                if here.is_dir() or not elsewhere.is_dir():
                    _move_addresses(connection, elsewhere, here)
                    moved = True
    return moved


def read_database(database: Path) -> int:
    """Count the runs of a database file without writing to it.

    Raises:
        ValueError: the file is no database of MLflow.
    """
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_CONNECT_SECONDS)
        with contextlib.closing(connection):
            return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.Error as error:
        raise ValueError(f"it is no database of MLflow: {error}") from None


def _other_places(connection: sqlite3.Connection, here: Path) -> list[Path]:
    """Folders of artifacts, other than the one next to the database, that experiments of ours are recorded with."""
    places = set()
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments"):
        ending = f"/{ARTIFACTS}/{urllib.parse.quote(name)}"
        if location and location.startswith("file:///") and location.endswith(ending):
            place = location.removesuffix(ending) + f"/{ARTIFACTS}"
            if place != here.as_uri():
                places.add(Path(urllib.parse.unquote(place.removeprefix("file://"))))
    return sorted(places)


def _move_addresses(connection: sqlite3.Connection, old: Path, new: Path) -> None:
    """Replaces the old folder at the front of every recorded address, all in one transaction."""
    with connection:
        known = {
            (table, column)
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for _, column, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall()
        }
        for table, column in _ADDRESS_COLUMNS:
            if (table, column) in known:
                _replace_front(connection, table, column, old.as_uri(), new.as_uri())
        # Where the checkpoint of a recorded model lies, as a path of the work folder itself.
        if ("logged_model_tags", "tag_value") in known:
            _replace_front(connection, "logged_model_tags", "tag_value", str(old.parent), str(new.parent))


def _replace_front(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
        (new, len(old) + 1, len(old) + 1, f"{old}/"),
    )
