"""The server as a process of its own: started, watched, asked and ended; Linux only."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from record import THREADS

_START_SECONDS, _ASK_SECONDS = 120.0, 60.0
_WORKER = re.compile(rb'fullrank_model_info\{worker="(\d+)"')


class Server:
    """A server that listens.

    Args:
        process: its first process.
        port: of 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def pids(self) -> list[int]:
        """Returns its process and all below it."""
        return [self.process.pid, *_below(self.process.pid)]

    def workers(self) -> list[int]:
        """Returns the processes that answer; fullrank says so itself."""
        with Client(self.port) as client:
            return sorted(int(p) for p in _WORKER.findall(client.get("/metrics")))

    def cpu_seconds(self) -> float:
        """Returns what its processes have used since they began, in all threads."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def resident_mb(self) -> float:
        """Returns the resident memory of its processes."""
        return sum(_resident_pages(pid) for pid in self.pids()) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def fullrank_serving(folder: Path, *options: str) -> Iterator[Server]:
    """Runs `fullrank serve` on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "fullrank", "serve", str(folder), "--port", str(port)]
    with serving([*command, *options], port, "/readyz") as server:
        yield server


@contextmanager
def serving(command: Sequence[str], port: int, ready: str) -> Iterator[Server]:
    """Runs a server until the block ends.

    Args:
        command: that starts it.
        port: that it was told.
        ready: path that answers 200 as soon as it serves.
    """
    environment = os.environ | THREADS
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"serving-{port}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
    try:
        until = time.monotonic() + _START_SECONDS
        while not _answers(port, ready):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text(errors="replace")[-2000:])
            time.sleep(0.1)
        yield Server(process, port)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.unlink(missing_ok=True)


class Client:
    """One kept connection, with as little of a client in it as there can be."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_ASK_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """Sends a request and returns the body of its answer, which has status 200."""
        self._socket.sendall(request)
        found = b""
        while (end := found.find(b"\r\n\r\n")) < 0:
            found += self._received()
        head = found[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        parts, missing = [found[end + 4 :]], length - (len(found) - end - 4)
        while missing > 0:
            parts.append(self._received())
            missing -= len(parts[-1])
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(b"".join([head, *parts])[:1000].decode(errors="replace"))
        return b"".join(parts)

    def get(self, path: str) -> bytes:
        """Asks for a path."""
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def _received(self) -> bytes:
        chunk = self._socket.recv(1 << 18)
        if not chunk:
            raise ConnectionError("the server hung up")
        return chunk


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of all threads of a process, or 0 when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of a process, as glibc makes it
    except OSError:
        return 0.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _answers(port: int, path: str) -> bool:
    try:
        with Client(port) as client:
            client.get(path)
    except (OSError, RuntimeError):
        return False
    return True


def _below(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(p) for p in file.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in children:
            found += [child, *_below(child)]
    return found


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
