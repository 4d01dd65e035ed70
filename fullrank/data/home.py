"""Where data sets live, and how they get there: over HTTPS, resumed, checked, and atomically."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import urlsplit

from fullrank.disk import raise_if_full
from fullrank.errors import DataMissingError, DownloadError

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where known
Opener = Callable[[urllib.request.Request], Any]
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 4
_MAX_UNPACKED = 64 << 30  # bytes from one archive
_MAX_RATIO = 200  # unpacked over packed; logs reach about 20
_RATIO_FLOOR = 64 << 20  # small archives may unpack to this much whatever the ratio


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file at the official home of a data set.

    Args:
        url: https.
        path: where it goes, relative to the data root.
        sha256: of the file; None where nobody published one (the download is then only checked
            for its size).
        bytes: size; None where unknown.
        unpack: a zip or gz archive: folder, relative to the data root, that its members go to.
    """

    url: str
    path: str
    sha256: str | None = None
    bytes: int | None = None
    unpack: str | None = None


def data_root(explicit: Path | None = None) -> Path:
    """Returns the folder of all data sets: the argument, else FULLRANK_DATA, else the cache."""
    if explicit is not None:
        return explicit
    named = os.environ.get("FULLRANK_DATA", "")
    return Path(named) if named else cache_folder() / "data"


def cache_folder(
    platform: str = sys.platform,
    environment: Mapping[str, str] = os.environ,
    home: Path | None = None,
) -> Path:
    """Returns the folder for files that can be had again, by the rules of the platform.

    Args:
        platform: as `sys.platform` names it.
        environment: variables; XDG_CACHE_HOME and LOCALAPPDATA are read.
        home: the user's folder; found by Python where None.
    """
    home = home or Path.home()
    if platform == "darwin":
        return home / "Library" / "Caches" / "fullrank"
    if platform == "win32":
        local = environment.get("LOCALAPPDATA", "")
        return (Path(local) if local else home / "AppData" / "Local") / "fullrank" / "Cache"
    named = environment.get("XDG_CACHE_HOME", "")  # relative paths are to be ignored, says XDG
    base = Path(named) if named.startswith("/") else home / ".cache"
    return base / "fullrank"


def missing(
    name: str, folder: Path, files: Sequence[str], licence: str, *, by_hand: str = ""
) -> DataMissingError:
    """Returns the error for a data set whose files are not there.

    Args:
        name: of the data set.
        folder: where its files belong.
        files: any of these would do.
        licence: under which it may be had.
        by_hand: address of a home that has to be visited by a person, as behind a log-in.
    """
    get = f"get it from {by_hand}" if by_hand else f"run `fullrank data get {name}`"
    return DataMissingError(
        f"the data set '{name}' is not on this machine",
        where=str(folder),
        found="no such folder" if not folder.exists() else "a folder without these files",
        expected=" or ".join(files),
        fix=f"{get} (licence: {licence}), or set FULLRANK_DATA or --data-root",
    )


def find(name: str, folder: Path, files: Sequence[str], licence: str, *, by_hand: str = "") -> Path:
    """Returns the first of several files that is there, plain or with ".gz".

    Args:
        name: of the data set.
        folder: where its files belong.
        files: any of these will do; the first that is there is taken.
        licence: under which it may be had.
        by_hand: address of a home that has to be visited by a person.

    Raises:
        DataMissingError: none is; says how to get it.
    """
    for file in files:
        for path in (folder / file, folder / f"{file}.gz"):
            if path.is_file():
                return path
    raise missing(name, folder, files, licence, by_hand=by_hand)


def fetch(
    remote: RemoteFile,
    root: Path,
    progress: Progress | None = None,
    *,
    _open: Opener | None = None,
    _schemes: tuple[str, ...] = ("https",),
) -> Path:
    """Downloads a file into the data root; one that is there and right is not loaded again.

    Bytes arrive in a `.part` file, which a later call continues where the server's ETag or the
    checksum can prove that both halves belong together. Only a checked file gets its name.

    Args:
        remote: what to get.
        root: the data root.
        progress: called with bytes so far and bytes in all.

    Returns:
        The path of the file.

    Raises:
        DownloadError: not https, the server failed, or what arrived has another size or checksum
            (it is deleted). Call again to resume after a broken connection.
        DiskFullError: no room; nothing is kept.
    """
    _require_scheme(remote.url, _schemes)
    target = root / safe_relative(remote.path, where=remote.url)
    if target.is_file() and _differs(remote, target) is None:
        return target
    part = target.with_name(target.name + ".part")
    tag = target.with_name(target.name + ".part.etag")
    opener = _open or _https_opener(_schemes)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(remote, part, tag, opener, progress)
        wrong = _differs(remote, part)
        tag.unlink(missing_ok=True)
        if wrong is not None:
            part.unlink()
            raise DownloadError(
                "a download is not the published file",
                where=remote.url,
                found=wrong[0],
                expected=wrong[1],
                fix="try again later; if it stays so, the file at its home has changed: report it",
            )
        os.replace(part, target)
    except OSError as error:
        if isinstance(error, (urllib.error.URLError, TimeoutError, ConnectionError)):
            raise _broken(remote, error) from error
        part.unlink(missing_ok=True)
        raise_if_full(error, part)
        raise
    return target


def get(
    files: Sequence[RemoteFile],
    root: Path,
    progress: Progress | None = None,
    **private: Any,
) -> list[Path]:
    """Downloads and unpacks all files of a data set; returns the paths that are now there."""
    paths: list[Path] = []
    for remote in files:
        path = fetch(remote, root, progress, **private)
        paths += [path] if remote.unpack is None else unpack(path, root / remote.unpack)
    return paths


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpacks a zip or gz archive; sizes and paths in it are not trusted.

    Args:
        archive: ends with ".zip" or ".gz".
        folder: where the members go.

    Returns:
        The files, in the order of the archive.

    Raises:
        DownloadError: a member would land outside the folder or is a link, the archive is
            damaged, or it unpacks to far more than it should. No member is kept then.
        DiskFullError: no room; no member is kept.
    """
    limit = min(_MAX_UNPACKED, max(_RATIO_FLOOR, archive.stat().st_size * _MAX_RATIO))
    parts: dict[Path, Path] = {}  # final -> temporary name
    budget = limit
    try:
        with closing(_members(archive)) as members:
            for name, member in members:
                final = folder / safe_relative(name, where=str(archive))
                final.parent.mkdir(parents=True, exist_ok=True)
                parts[final] = final.with_name(final.name + ".part")
                with member as source, parts[final].open("wb") as sink:
                    while chunk := source.read(min(_CHUNK, budget + 1)):
                        budget -= len(chunk)
                        if budget < 0:
                            raise _refused(archive, f"more than {limit:,} bytes", "a sane size")
                        sink.write(chunk)
        for final, part in parts.items():
            os.replace(part, final)
    except (zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise _refused(archive, str(error), "a complete archive") from error
    except OSError as error:
        raise_if_full(error, folder)
        raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return list(parts)


def safe_relative(name: str, *, where: str) -> Path:
    """Returns a relative path that stays inside its folder.

    Raises:
        DownloadError: the path is absolute, climbs with "..", names a drive or is empty.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise DownloadError(
            "a file would land outside its folder",
            where=where,
            found=repr(name),
            expected="a relative path without '..'",
            fix="do not use this file; report it",
        )
    return Path(*path.parts)


def _members(archive: Path) -> Generator[tuple[str, IO[bytes]], None, None]:
    if archive.name.endswith(".gz"):
        with gzip.open(archive) as opened:
            yield archive.name.removesuffix(".gz"), cast(IO[bytes], opened)
        return
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _refused(archive, f"a link: {member.filename!r}", "plain files")
            if not member.is_dir():
                yield member.filename, packed.open(member)


def _refused(archive: Path, found: str, expected: str) -> DownloadError:
    return DownloadError(
        "an archive cannot be unpacked",
        where=str(archive),
        found=found,
        expected=expected,
        fix="delete the archive and get it again",
    )


def _require_scheme(url: str, schemes: tuple[str, ...]) -> None:
    scheme = urlsplit(url).scheme
    if scheme not in schemes:
        raise DownloadError(
            "an address is not https",
            where=url,
            found=f"'{scheme}'",
            expected="https",
            fix="use the https address of the file",
        )


def _https_opener(schemes: tuple[str, ...]) -> Opener:
    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(
            self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
        ) -> Any:
            fp.close()
            _require_scheme(newurl, schemes)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    director = urllib.request.build_opener(Redirect)
    return lambda request: director.open(request, timeout=_TIMEOUT_SECONDS)


def _download(
    remote: RemoteFile, part: Path, tag: Path, opener: Opener, progress: Progress | None
) -> None:
    """Fills `part`, going on after broken connections."""
    for attempt in range(_ATTEMPTS):
        try:
            if _continue(remote, part, tag, opener, progress):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416:
                raise
            part.unlink(missing_ok=True)  # the part is longer than the file: begin anew
        except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
            if attempt == _ATTEMPTS - 1:
                raise _broken(remote, error) from error
    raise _broken(remote, EOFError("the connection ended early, several times"))


def _continue(
    remote: RemoteFile, part: Path, tag: Path, opener: Opener, progress: Progress | None
) -> bool:
    """Makes one request; returns whether the file is complete."""
    etag = tag.read_text() if tag.exists() else ""
    start = part.stat().st_size if part.exists() and (etag or remote.sha256) else 0
    if start and start == remote.bytes:
        return True
    headers = {"User-Agent": "fullrank", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag:
            headers["If-Range"] = etag
    with opener(urllib.request.Request(remote.url, headers=headers)) as answer:
        if answer.status != 206:
            start = 0  # the server sends the whole file
        strong = answer.headers.get("ETag", "")
        tag.write_text("" if strong.startswith("W/") else strong)
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else remote.bytes
        done = start
        with part.open("ab" if start else "wb") as sink:
            while chunk := answer.read(_CHUNK):
                sink.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
                if remote.bytes is not None and done > remote.bytes:
                    return True  # too long already; the check refuses it
    return total is None or done >= total


def _differs(remote: RemoteFile, path: Path) -> tuple[str, str] | None:
    """Returns (found, expected) where a file is not the published one."""
    size = path.stat().st_size
    if remote.bytes is not None and size != remote.bytes:
        return f"{size:,} bytes", f"{remote.bytes:,} bytes"
    if remote.sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != remote.sha256:
            return f"sha256 {digest}", f"sha256 {remote.sha256}"
    return None


def _broken(remote: RemoteFile, error: BaseException) -> DownloadError:
    return DownloadError(
        "a download failed",
        where=remote.url,
        found=f"{type(error).__name__}: {error}",
        expected="the whole file",
        fix="check the connection and call again: it goes on where it stopped",
    )
