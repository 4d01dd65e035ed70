"""The data root, downloads against a local server that misbehaves, and archives that attack."""

from __future__ import annotations

import gzip
import hashlib
import io
import stat
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fullrank.data import home
from fullrank.data.home import RemoteFile, cache_folder, data_root, fetch, find, get, unpack
from fullrank.errors import DataMissingError, DiskFullError, DownloadError

CONTENT = bytes(range(256)) * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; each request may be cut after some bytes, once per entry of `cuts`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges: list[str] = []
        self.etag = '"one"'
        self.resumes = True
        self.content = CONTENT


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/file")
            self.end_headers()
            return
        if self.path != "/file":
            self.send_error(404)
            return
        start = int(asked[6:-1]) if asked else 0
        same = self.headers.get("If-Range", self.server.etag) == self.server.etag
        if not (self.server.resumes and same):
            start = 0
        content = self.server.content
        if start and start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def load(server: Server, root: Path, *, path: str = "/file", **facts: object) -> Path:
    url = f"http://127.0.0.1:{server.server_port}{path}"
    return fetch(RemoteFile(url=url, path="set/file.bin", **facts), root, _schemes=("http",))


def test_a_file_arrives_whole_and_is_not_loaded_twice(server, tmp_path):
    seen: list[tuple[int, int | None]] = []
    url = f"http://127.0.0.1:{server.server_port}/file"
    remote = RemoteFile(url=url, path="set/file.bin", sha256=SHA, bytes=len(CONTENT))
    path = fetch(remote, tmp_path, lambda *at: seen.append(at), _schemes=("http",))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    fetch(remote, tmp_path, _schemes=("http",))
    assert len(server.ranges) == 1
    path.write_bytes(CONTENT[:-1] + b"x")  # damaged on disk: had again
    assert fetch(remote, tmp_path, _schemes=("http",)).read_bytes() == CONTENT


def test_broken_connections_are_resumed(server, tmp_path):
    server.cuts = [1000, 70_000]
    assert load(server, tmp_path, sha256=SHA).read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=1000-", "bytes=71000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    server.cuts = [500, 500, 500, 500]
    with pytest.raises(DownloadError, match="failed"):
        load(server, tmp_path)
    assert not (tmp_path / "set/file.bin").exists()
    assert (tmp_path / "set/file.bin.part").stat().st_size == 2000
    assert load(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=2000-"


@pytest.mark.parametrize("etag", ['"two"', "", 'W/"one"'])
def test_halves_of_two_versions_are_never_joined(server, tmp_path, etag):
    server.cuts = [500] * 4
    if etag != '"two"':
        server.etag = etag  # nothing can prove that the halves belong together
    with pytest.raises(DownloadError):
        load(server, tmp_path)
    server.etag, server.content = etag, b"z" * len(CONTENT)
    assert load(server, tmp_path).read_bytes() == server.content


def test_a_server_that_cannot_resume_sends_all(server, tmp_path):
    server.cuts, server.resumes = [1000], False
    assert load(server, tmp_path, sha256=SHA).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/file.bin.part").write_bytes(CONTENT + b"more")
    assert load(server, tmp_path, sha256=SHA).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"sha256": "0" * 64}, "sha256"),
        ({"bytes": len(CONTENT) + 1}, "bytes"),
        ({"bytes": len(CONTENT) - 1}, "bytes"),
        ({"bytes": 10, "sha256": SHA}, "bytes"),
    ],
)
def test_a_mismatch_is_refused_and_nothing_stays(server, tmp_path, facts, words):
    with pytest.raises(DownloadError, match="not the published file") as caught:
        load(server, tmp_path, **facts)
    assert words in caught.value.found
    assert words in caught.value.expected
    assert list((tmp_path / "set").iterdir()) == []


def test_only_https_also_after_a_redirect(server, tmp_path):
    with pytest.raises(DownloadError, match="not https"):
        fetch(RemoteFile(url="http://example.org/file", path="file"), tmp_path)
    with pytest.raises(DownloadError, match="not https"):
        load(server, tmp_path, path="/away")
    with pytest.raises(DownloadError, match="failed") as caught:
        load(server, tmp_path, path="/nothing")
    assert "404" in caught.value.found


def test_a_full_disk_keeps_nothing(tmp_path):
    class Answer(io.BytesIO):
        status, headers = 200, {}

        def read(self, *_: object) -> bytes:
            raise OSError(28, "No space left on device")

    def opener(_: urllib.request.Request) -> Answer:
        return Answer()

    with pytest.raises(DiskFullError):
        fetch(RemoteFile(url="https://example.org/f", path="f"), tmp_path, _open=opener)
    assert not (tmp_path / "f.part").exists()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_archives_unpack_to_their_members(server, tmp_path):
    zipped(tmp_path / "a.zip", {"ml/": b"", "ml/u.data": b"1\t2", "ml/deep/x": b"y"})
    paths = unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [p.read_bytes() for p in paths] == [b"1\t2", b"y"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text"))
    assert unpack(tmp_path / "b.txt.gz", tmp_path / "out")[0].name == "b.txt"
    server.content = (tmp_path / "a.zip").read_bytes()
    url = f"http://127.0.0.1:{server.server_port}/file"
    remote = RemoteFile(url=url, path="down/a.zip", unpack="sets")
    got = get((remote,), tmp_path, _schemes=("http",))
    assert got[0] == tmp_path / "sets/ml/u.data"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "c:evil", "a\\..\\evil"])
def test_no_member_lands_outside_its_folder(tmp_path, name):
    archive = zipped(tmp_path / "a.zip", {"good": b"x", name: b"y"})
    with pytest.raises(DownloadError, match="outside"):
        unpack(archive, tmp_path / "deep" / "out")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError) as caught:
        unpack(tmp_path / "a.zip", tmp_path)
    assert "link" in caught.value.found


def test_bombs_are_refused_by_what_they_really_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "_RATIO_FLOOR", 1000)
    archive = zipped(tmp_path / "a.zip", {"small": b"x", "zeros": bytes(5_000_000)})
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    packed = tmp_path / "b.gz"
    packed.write_bytes(gzip.compress(bytes(5_000_000)))
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        unpack(packed, tmp_path / "out")


def test_damaged_archives_leave_nothing(tmp_path):
    whole = zipped(tmp_path / "a.zip", {"one": b"x" * 100, "two": bytes(range(256)) * 40})
    raw = whole.read_bytes()
    for damaged in (raw[:-30], raw[:200] + b"\xff\xff" + raw[202:]):
        whole.write_bytes(damaged)
        with pytest.raises(DownloadError, match="cannot be unpacked"):
            unpack(whole, tmp_path / "out")
        assert not any((tmp_path / "out").rglob("*"))


def test_the_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLRANK_DATA", str(tmp_path / "named"))
    assert data_root(tmp_path) == tmp_path
    assert data_root() == tmp_path / "named"
    monkeypatch.setenv("FULLRANK_DATA", "")
    assert data_root() == cache_folder() / "data"


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "/home/x/.cache/fullrank"),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast/fullrank"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/x/.cache/fullrank"),
        ("darwin", {"XDG_CACHE_HOME": "/fast"}, "/home/x/Library/Caches/fullrank"),
        ("win32", {}, "/home/x/AppData/Local/fullrank/Cache"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/fullrank/Cache"),
    ],
)
def test_the_cache_follows_the_rules_of_the_platform(platform, environment, expected):
    assert cache_folder(platform, environment, Path("/home/x")) == Path(expected)


def test_absent_data_names_folder_command_and_licence(tmp_path):
    with pytest.raises(DataMissingError) as caught:
        find("ml_1m", tmp_path, ("ratings.dat",), "research use")
    message = str(caught.value)
    for part in (str(tmp_path), "ratings.dat", "fullrank data get ml_1m", "research use"):
        assert part in message
    (tmp_path / "ratings.dat.gz").touch()
    assert find("ml_1m", tmp_path, ("ratings.dat",), "").name == "ratings.dat.gz"
