"""The image and the replicas, as far as they can be read without a builder of images."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fullrank.cli as cli
from fullrank import __version__
from fullrank.serve import ask, server

ROOT = Path(__file__).parent.parent
BALANCER = ROOT / "deploy" / "haproxy.cfg"


def instructions(text: str) -> list[tuple[str, str]]:
    """Returns (instruction, arguments) of a Dockerfile; continued lines are joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.partition(" ") for line in whole.splitlines() if line.strip())
    return [(name.upper(), rest.strip()) for name, _, rest in pairs]


def last_stage(steps: list[tuple[str, str]]) -> list[tuple[str, str]]:
    start = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    return steps[start:]


def one(steps: list[tuple[str, str]], name: str) -> str:
    [found] = [rest for step, rest in steps if step == name]
    return found


@pytest.fixture(scope="module")
def image() -> list[tuple[str, str]]:
    return instructions((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return plain


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], cli.Serve]:
    """Returns what the command line makes of a command, without running it."""
    seen: list[cli.Serve] = []

    def run(self: cli.Serve) -> dict[str, Any]:
        seen.append(self)
        return {}

    monkeypatch.setattr(cli.Serve, "run", run)

    def parse(command: list[str]) -> cli.Serve:
        assert command[0] == "fullrank"
        assert cli.main(command[1:]) == 0
        return seen.pop()

    return parse


def test_nothing_runs_as_root(image: list[tuple[str, str]]) -> None:
    final = last_stage(image)
    user, group = map(int, one(final, "USER").split(":"))
    assert user > 0
    assert group > 0
    after = final[[name for name, _ in final].index("USER") :]
    assert not [rest for name, rest in after if name in ("RUN", "COPY", "ADD")]
    assert f"--uid {user}" in one(final, "RUN")


def test_images_have_versions(image: list[tuple[str, str]], compose: dict[str, Any]) -> None:
    bases = [rest.split()[0] for name, rest in image if name == "FROM"]
    named = {*bases, *(s["image"] for s in compose["services"].values())}
    for name in named:
        assert re.search(r":\d+\.\d+", name), name
    assert f"fullrank:{__version__}" in named


def test_what_is_copied_exists_and_reaches_the_builder(image: list[tuple[str, str]]) -> None:
    copied = [
        source
        for name, rest in image
        if name in ("COPY", "ADD") and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in kept  # so that nothing else does: no data, no token
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in kept, source
    assert {line[1:] for line in kept if line.startswith("!")} == set(copied)


def test_no_secret_is_in_a_layer(image: list[tuple[str, str]]) -> None:
    set_here = " ".join(rest for name, rest in image if name in ("ENV", "ARG", "LABEL"))
    assert not re.search("token|secret|password|key", set_here, re.I)


def test_extras_are_those_of_the_project(image: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = [r.removeprefix("EXTRAS=") for n, r in image if n == "ARG" and "EXTRAS" in r]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_the_command_of_the_image_is_one(
    image: list[tuple[str, str]], parsed: Callable[[list[str]], cli.Serve]
) -> None:
    final = last_stage(image)
    command = parsed(json.loads(one(final, "ENTRYPOINT")) + json.loads(one(final, "CMD")))
    assert command.host == "0.0.0.0"
    assert str(command.artifact.parent) in json.loads(one(final, "VOLUME"))


def test_ports_agree(image: list[tuple[str, str]]) -> None:
    final, port = last_stage(image), server.ServerConfig.port
    health = json.loads(one(final, "HEALTHCHECK").partition("CMD")[2])
    compile(health[2], "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{port}/healthz" in health[2]
    assert one(final, "EXPOSE") == str(port)
    assert cli.Serve.port == port
    assert f"ranker:{port} check" in BALANCER.read_text()


def test_replicas_are_as_locked_up_as_the_image_allows(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service
        assert "user" not in service
    ranker = compose["services"]["ranker"]
    assert ranker["deploy"]["replicas"] > 1
    assert all(volume.endswith(":/models:ro") for volume in ranker["volumes"])


def test_compose_names_what_exists(
    compose: dict[str, Any], parsed: Callable[[list[str]], cli.Serve]
) -> None:
    ranker, balancer = (compose["services"][name] for name in ("ranker", "balancer"))
    place = (ROOT / "deploy" / ranker["build"]["context"]).resolve()
    assert (place / ranker["build"]["dockerfile"]).samefile(ROOT / "Dockerfile")
    source = balancer["volumes"][0].partition(":")[0]
    assert (ROOT / "deploy" / source).samefile(BALANCER)
    command = parsed(["fullrank", "serve", "/models/artifact", *ranker["command"]])
    assert command.token_file == Path("/run/secrets") / ranker["secrets"][0]
    assert set(ranker["secrets"]) == compose["secrets"].keys()


def test_nobody_waits_less_than_the_server(compose: dict[str, Any]) -> None:
    grace = compose["services"]["ranker"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > server._GRACE_SECONDS
    [patience] = re.findall(r"timeout server (\d+)s", BALANCER.read_text())
    assert 1000 * int(patience) > ask._MAX_DEADLINE_MS


def test_the_balancer_asks_what_replicas_answer() -> None:
    lines = [shlex.split(x, comments=True) for x in BALANCER.read_text().splitlines()]
    [check] = [words[2:] for words in lines if words[:2] == ["option", "httpchk"]]
    assert check == ["GET", "/readyz"]
    [denied] = [words for words in lines if words[:2] == ["http-request", "deny"]]
    assert {"/v1/reload", "/metrics"} <= set(denied)  # of one replica, not of all
