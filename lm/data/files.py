"""Files as preparation needs them: atomic writes, content hashes that are remembered, locks, and reading from URLs."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
import socket
import sys
import time

from lm import cli
from lm.errors import ConfigError, DataError, DiskError, writing

_BLOCK = 1 << 22
# A file changed again within the clock's resolution would keep size and mtime (git calls it "racily clean").
_SETTLED_NS = 2_000_000_000
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def is_url(location) -> bool:
    """True for gs://bucket/x, memory://x and the like."""
    return "://" in str(location)


def join(location, *names: str) -> str:
    """A path or URL below `location`."""
    return "/".join([str(location).rstrip("/"), *names]) if is_url(location) else os.path.join(location, *names)


def filesystem(url: str):
    """(fsspec file system, path inside it) of a URL. Raises DataError when its driver is not installed."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(str(url))
    except ImportError as error:
        raise DataError(f"{url}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error


def read_bytes(location) -> bytes:
    """The whole content of a local file or of a URL. Raises DataError when it is not there or cannot be read."""
    try:
        if is_url(location):
            fs, path = filesystem(location)
            return fs.cat_file(path)
        return pathlib.Path(location).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{location} does not exist") from error
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror or error}") from error


def cache_root(data) -> pathlib.Path:
    """Folder of prepared stores and tokenizers: data.cache_dir, else $LM_CACHE, else ~/.cache/lm."""
    root = data.cache_dir or cli.cache_root()
    if is_url(root):
        raise ConfigError(f"data.cache_dir={root}: the cache must be a local folder; copy finished stores there and read them as store:URL")
    return pathlib.Path(root).expanduser().absolute()


@contextlib.contextmanager
def disk_errors(path):
    """Turns a full disk or missing permission while writing `path` into a DiskError. What else the disk says may be of what is read
    meanwhile, and stays as it is."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(f"no space left to write {path}: free space there, then run the same command again") from error
        if error.errno in _CLOSED:
            raise DiskError(f"cannot write {path} ({error.strerror.lower()}): mend the folder, then run the same command again") from error
        raise


@contextlib.contextmanager
def preparing():
    """Adds to a DiskError where else prepared text may go."""
    try:
        yield
    except DiskError as error:
        raise DiskError(f"{error}, or choose another data.cache_dir or --out") from error


@contextlib.contextmanager
def atomic_file(path):
    """A binary file that takes the name `path` only when it is complete and on disk; on any error nothing is left. DiskError where the
    disk is full or may not be written."""
    path = pathlib.Path(path)
    # A disk that several machines share has processes of the same number.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Writes `value` atomically, with indentation. DiskError where the disk does not take it."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with writing(path), atomic_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # a lone surrogate, of a path that is no UTF-8, as JSON escapes it


def read_json(location):
    """The JSON value in a local file or URL. Raises DataError."""
    try:
        return json.loads(read_bytes(location))
    except ValueError as error:
        raise DataError(f"{location} is not valid JSON: {error}; delete it") from error


def finite(value):
    """The value with None for every number that is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(*parts: bytes) -> str:
    """Hex hash (128 bits) of byte strings, each counted with its length."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def json_digest(value) -> str:
    """Hex hash of a JSON value, independent of the order of keys."""
    return digest(json.dumps(value, sort_keys=True).encode())


def _file_digest(path: str) -> str:
    state = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return state.hexdigest()


def stamp(path) -> tuple[int, int]:
    """(size in bytes, time of last change in ns): what tells cheaply that a file is unchanged."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def hash_files(paths, root: pathlib.Path) -> list[dict]:
    """[{path, size, hash}] of `paths`. Contents are read only where size or mtime differ from what `root` remembers."""
    index = root / "hashes.json"
    known = read_json(index) if index.exists() else {}
    rows, learned = [], {}
    for path in map(str, paths):
        key = os.path.abspath(path)
        size, changed = stamp(path)
        if known.get(key, [None, None])[:2] == [size, changed]:
            rows.append({"path": path, "size": size, "hash": known[key][2]})
            continue
        started = time.time_ns()
        value = _file_digest(path)
        rows.append({"path": path, "size": size, "hash": value})
        if started - changed > _SETTLED_NS and stamp(path) == (size, changed):
            learned[key] = [size, changed, value]
    if learned:
        # Two jobs may write at once; the last one wins and the other's files are hashed once more.
        write_json(index, known | learned)
    return rows


@contextlib.contextmanager
def lock(root: pathlib.Path, name: str):
    """Holds the lock `name` of this cache: other processes that want it wait. It is freed however the process ends."""
    path = root / "locks" / f"{name}.lock"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {name}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
