"""Server: one process, or several under uvicorn's supervisor, which replaces one that dies."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess

from fullrank.config import require
from fullrank.errors import ConfigError
from fullrank.serve.app import create_app
from fullrank.serve.artifact import Artifact, read_manifest
from fullrank.serve.ask import digest
from fullrank.serve.batching import BatchingConfig
from fullrank.serve.forms import Form
from fullrank.serve.generations import Generations
from fullrank.serve.protocol import PatientProtocol
from fullrank.serve.service import Limits, Service, ServiceConfig
from fullrank.serve.shadow import ShadowConfig
from fullrank.train.memory import keep_freed_memory

_ENVIRONMENT = "FULLRANK_SERVE"  # how workers learn their settings; no secret is in it
_PATHS = ("artifact", "token_file", "shadow_log")
_LEAST_TOKEN = 16  # characters
_GRACE_SECONDS = 10
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of `fullrank serve`; see the command for what they mean."""

    artifact: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    token_file: Path | None = None
    max_batch: int = BatchingConfig.max_batch
    max_wait_ms: float = BatchingConfig.max_wait_ms
    queue_rows: int = BatchingConfig.queue_rows
    max_rows: int = Limits.max_rows
    max_body_mb: float = 16.0
    deadline_ms: float = Limits.deadline_ms
    threads: int = 1
    form: Form = "eager"
    search: Literal["exact", "hnsw"] = "exact"
    shadow_log: Path | None = None
    shadow_every: int = ShadowConfig.every
    shadow_mb: float = 256.0

    def __post_init__(self) -> None:
        whole = ("workers", "max_batch", "queue_rows", "max_rows", "threads")
        above = (*whole, "max_body_mb", "deadline_ms")
        for name in above:
            require(
                getattr(self, name) > 0,
                where=f"--{name.replace('_', '-')}",
                found=getattr(self, name),
                expected="a number above 0",
                fix="leave it out for the default",
            )
        require(
            self.max_wait_ms >= 0 and 0 <= self.port < 65536,
            where="--max-wait-ms and --port",
            found=f"{self.max_wait_ms} and {self.port}",
            expected="a time of 0 or more, and a port below 65536",
            fix="correct them",
        )

    def service(self, runtime: Path | None = None) -> ServiceConfig:
        """Returns what a worker needs to know."""
        return ServiceConfig(
            artifact=self.artifact,
            limits=Limits(
                max_rows=self.max_rows,
                max_body_bytes=int(self.max_body_mb * 2**20),
                buffered_bytes=int(16 * self.max_body_mb * 2**20),
                deadline_ms=self.deadline_ms,
            ),
            batching=BatchingConfig(
                max_batch=self.max_batch,
                max_wait_ms=self.max_wait_ms,
                queue_rows=self.queue_rows,
                threads=self.threads,
            ),
            form=self.form,
            search=self.search,
            shadow=self._shadow(),
            runtime=runtime,
        )

    def _shadow(self) -> ShadowConfig | None:
        if self.shadow_log is None:
            return None
        return ShadowConfig(
            folder=self.shadow_log,
            every=self.shadow_every,
            max_bytes=int(self.shadow_mb * 2**20),
        )


def serve(config: ServerConfig, announce: Any = print) -> None:
    """Serves until SIGTERM or SIGINT; requests that run are answered first.

    Args:
        config: what and where.
        announce: is told the address once it is bound.

    Raises:
        ArtifactError: the artefact is not sound.
        ConfigError: the address is taken, or the token file holds no token.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    keep_freed_memory()
    tokens, service = read_tokens(config.token_file), config.service()
    listener = _bound(config.host, config.port)
    host, port = listener.getsockname()[:2]
    try:
        if config.workers == 1:
            app = create_app(Service(service, tokens))
            announce(f"listening on http://{host}:{port}")
            uvicorn.Server(_uvicorn(app, config)).run([listener])
        else:
            with tempfile.TemporaryDirectory(prefix="fullrank-serve-") as folder:
                _first_generation(config, Path(folder))
                os.environ[_ENVIRONMENT] = _to_json(config, Path(folder))
                announce(f"listening on http://{host}:{port}")
                target = f"{__name__}:app_from_environment"
                Supervisor(_uvicorn(target, config), [listener]).run()
    finally:
        listener.close()


def app_from_environment() -> Any:
    """Returns the app of a worker; its settings come from the process that started it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    keep_freed_memory()
    _end_with_supervisor()
    plain = json.loads(os.environ[_ENVIRONMENT])
    runtime = Path(plain.pop("runtime"))
    for name in _PATHS:
        plain[name] = Path(plain[name]) if plain[name] else None
    config = ServerConfig(**plain)
    return create_app(Service(config.service(runtime), read_tokens(config.token_file)))


def read_tokens(file: Path | None) -> tuple[bytes, ...]:
    """Returns the digests of the tokens in a file, one a line; none without a file.

    Raises:
        ConfigError: the file cannot be read, or holds a token that is too short, or none.
    """
    if file is None:
        return ()
    try:
        lines = [line.strip() for line in file.read_bytes().splitlines()]
    except OSError as cause:
        raise ConfigError(
            "the token file cannot be read",
            where="--token-file",
            found=f"{type(cause).__name__}: {cause.strerror}",
            expected="a text file with a token on each line",
            fix="write one, readable by the user that serves",
        ) from cause
    tokens = [line for line in lines if line]
    if not tokens or min(map(len, tokens)) < _LEAST_TOKEN:
        raise ConfigError(
            "the token file holds no token, or one that could be guessed",
            where="--token-file",
            found=f"{len(tokens)} tokens, the shortest of {min(map(len, tokens), default=0)} bytes",
            expected=f"tokens of {_LEAST_TOKEN} bytes or more, one on each line",
            fix="write one, as from: openssl rand -hex 32",
        )
    return tuple(map(digest, tokens))


class Supervisor(Multiprocess):
    """uvicorn's supervisor, but SIGHUP swaps the artefact and keeps the processes."""

    def handle_hup(self) -> None:
        """Asks one worker to reload; the others follow it."""
        for process in self.processes:
            if process.process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGHUP)
                return


def _end_with_supervisor() -> None:
    """Asks the kernel for SIGTERM when the supervisor dies, even by SIGKILL.

    Workers that went on without it would hold the port, and nobody would replace them.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)


def _uvicorn(app: Any, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=config.workers,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


def _first_generation(config: ServerConfig, folder: Path) -> None:
    """Copies the artefact to where the workers read it, and refuses an unsound one at once."""
    Artifact.load(config.artifact)
    generations = Generations(folder)
    fingerprint = read_manifest(config.artifact)["fingerprint"]
    generations.publish(generations.keep(config.artifact, fingerprint))


def _to_json(config: ServerConfig, runtime: Path) -> str:
    plain = {name: getattr(config, name) for name in config.__dataclass_fields__}
    # Links stay links: one that points elsewhere by the next reload is how artefacts are released.
    plain |= {name: str(plain[name].absolute()) for name in _PATHS if plain[name]}
    return json.dumps(plain | {"runtime": str(runtime)})


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # trap: asyncio turns Nagle's algorithm off only where the protocol is named; an answer, written
    # in two parts, would otherwise wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as cause:
        listener.close()
        raise ConfigError(
            "the address cannot be used",
            where=f"--host {host} --port {port}",
            found=str(cause),
            expected="an address of this machine and a port that is free",
            fix="choose another port",
        ) from cause
    listener.set_inheritable(True)
    return listener
