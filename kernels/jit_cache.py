"""Where compiled kernels are kept between runs.

numba notices an edited file, but not an edit to a helper in another file, nor that it is told to compile otherwise
(`NUMBA_OPT`, `NUMBA_BOUNDSCHECK`), and would go on serving the stale kernel. So the folder is named after the hash of
all kernel sources and of that. What it holds are pickles, which run code when they are loaded: nobody but the owner may
write there.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numba.core.config
from numba.core import caching

from .files import write_whole

_config: Any = numba.core.config
"""numba's settings, which it makes when it is imported, from the environment."""

_SOURCES = Path(__file__).parent
_DAYS_UNUSED = 30


def sources_hash() -> str:
    """Names this state of all kernel sources."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*.py")):
        digest.update(f"{path.relative_to(_SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """The private folder of these sources, made if need be; None where there can be none, and nothing is cached.

    It stands in `NUMBA_CACHE_DIR` if the user set one, else in `XDG_CACHE_HOME`, else in `~/.cache`.
    """
    try:
        users = _config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME")
        home = (Path(users) if users else Path.home() / ".cache") / "kernelproof"
        folder = home / _state()
        for each in (home, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_private(each):
                return None
        os.utime(folder)  # In use: its age counts from here.
        if not os.access(folder, os.W_OK):
            return None
        _remove_unused(home)
    except (OSError, RuntimeError):  # Path.home() raises RuntimeError where there is no home.
        return None
    return folder


def _state() -> str:
    """Names what machine code depends on, beside what numba itself tells apart."""
    settings = (
        int(_config.OPT), _config.LOOP_VECTORIZE, _config.SLP_VECTORIZE, _config.DISABLE_INTEL_SVML,
        _config.BOUNDSCHECK, _config.DEBUGINFO_DEFAULT,
    )  # fmt: skip
    return hashlib.sha256(repr((sources_hash(), settings)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def private_cache() -> Iterator[None]:
    """What numba decorates in this block is cached in `cache_folder()`; its other users are left alone."""
    before = _config.CACHE_DIR, caching.IndexDataCacheFile
    folder = cache_folder()
    _config.CACHE_DIR = str(folder) if folder else ""
    caching.IndexDataCacheFile = _FileOfEach
    try:
        yield
    finally:
        _config.CACHE_DIR, caching.IndexDataCacheFile = before


class _FileOfEach(caching.IndexDataCacheFile):
    """Each signature's code in a file that is named after it, written before the index names it.

    numba numbers the files by the index that it read a moment before. Of two processes that compile a function at once,
    for float32 and for float64, one would leave its code where the index says the other's is.
    """

    def save(self, key: Any, data: Any) -> None:
        known = self._load_index()
        number = int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16)
        while self._data_name(number) in {name for other, name in known.items() if other != key}:
            number += 1
        self._save_data(self._data_name(number), data)
        # What another process has added meanwhile may be lost to the index: it is compiled once more, later.
        self._save_index(self._load_index() | {key: self._data_name(number)})


def is_caching() -> bool:
    """Whether functions that are decorated now have a folder to be cached in."""
    return bool(_config.CACHE_DIR)


def kept_library(name: str, codegen: Any, compiled: Callable[[], Any]) -> Any:
    """The machine code that a run before left in `cache_folder()` by this name, else `compiled()`, which is left there.

    What is not as it was written is compiled anew.
    """
    folder = _folder()
    if folder is None:
        return compiled()
    key = name, codegen.magic_tuple(), numba.__version__, llvmlite.__version__
    file = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.library"
    try:
        seal, state = file.read_bytes().split(b"\n", 1)
        if hashlib.sha256(state).hexdigest().encode() == seal:
            return codegen.unserialize_library(pickle.loads(state))
    except (OSError, ValueError):  # Not there, or not whole.
        pass
    library = compiled()
    state = pickle.dumps(library.serialize_using_object_code())
    with contextlib.suppress(OSError):
        write_whole(file, hashlib.sha256(state).hexdigest().encode() + b"\n" + state)
    return library


_folder = functools.cache(cache_folder)


def _is_private(folder: Path) -> bool:
    if not hasattr(os, "getuid"):
        return True  # Windows: a user's own folders are private by inheritance.
    status = folder.lstat()
    shared = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & shared


def _remove_unused(home: Path) -> None:
    oldest = time.time() - _DAYS_UNUSED * 24 * 3600
    for each in home.iterdir():
        if each.stat().st_mtime < oldest:
            shutil.rmtree(each, ignore_errors=True)
