"""The page: its files as they are served, and the page itself in a real browser."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fullrank.serve import page as served
from fullrank.serve.app import create_app
from fullrank.serve.ask import digest
from fullrank.serve.engine import Engine
from fullrank.serve.service import Service, ServiceConfig

from .conftest import make_artifact
from .test_server import TOKEN, running, soon

FOLDER = Path(served.__file__).parent / "page"
FILES = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
POLICY = {
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self'",
    "connect-src": "'self'", "img-src": "'self' data:", "base-uri": "'none'",
    "form-action": "'none'", "frame-ancestors": "'none'",
}  # fmt: skip


# ---- the files


@pytest.fixture(scope="module")
def answers(log: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, httpx.Response]:
    """Path and method -> what a server that has a token answers to somebody without one."""
    folder = tmp_path_factory.mktemp("page") / "artifact"
    make_artifact("dcnv2", log).save(folder)

    async def run() -> dict[str, httpx.Response]:
        service = Service(ServiceConfig(artifact=folder), (digest(TOKEN.encode()),))
        carrier = httpx.ASGITransport(create_app(service))
        async with (
            service.running(),
            httpx.AsyncClient(transport=carrier, base_url="http://t") as client,
        ):
            paths = ("/", "/index.html", "/v1/model", *(f"/{n}" for n in FILES))
            got = {path: await client.get(path) for path in paths}
            return got | {"HEAD": await client.head("/"), "POST": await client.post("/")}

    return asyncio.run(run())


def test_every_file_of_the_page_is_served_with_its_type_and_policy(answers):
    assert answers["/"].text == FILES["index.html"]
    assert answers["/index.html"].status_code == 404  # one address for one thing
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
    for name, text in FILES.items():
        answer = answers["/" if name == "index.html" else f"/{name}"]
        assert (answer.status_code, answer.text) == (200, text)
        assert answer.headers["content-type"] == f"{kinds[Path(name).suffix]}; charset=utf-8"
        said = answer.headers["content-security-policy"].split("; ")
        assert dict(part.split(" ", 1) for part in said) == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    head = answers["HEAD"]
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(FILES["index.html"].encode())
    assert answers["POST"].status_code == 405
    assert answers["/v1/model"].status_code == 401  # what the page shows is not for everybody


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_server_or_writes_markup(name):
    text = FILES[name].replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
    assert not re.search(r"\w+:\s?//\w|[\"'(]//\w|@import|url\(", text)
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
    assert not [word for word in (*forbidden, "Function(", "Storage", "cookie") if word in text]


def test_the_page_obeys_its_own_policy():
    """Neither script nor style stands in the markup, where the policy would not let it run."""
    text = FILES["index.html"]
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.S) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    named = set(re.findall(r'(?:src|href)="([\w.]+)"', text))
    assert named == {"page.css", "page.js", "openapi.json"}
    loaded = {m for t in FILES.values() for m in re.findall(r'from "\./([\w.]+)"', t)}
    assert loaded | named - {"openapi.json"} | {"index.html"} == FILES.keys()


PAIRS = [
    *((ink, paper, 4.5) for ink in ("ink", "soft", "accent") for paper in ("card", "paper")),
    *((ink, "accent-bg", 4.5) for ink in ("ink", "soft")),
    *((ink, "bad-bg", 4.5) for ink in ("ink", "soft", "bad")),
    ("on-accent", "accent", 4.5), ("up", "card", 4.5), ("down", "card", 4.5),
    *((mark, "card", 3.0) for mark in ("edge", "bad", "accent")),
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_far_enough_apart_to_read(scheme):
    """WCAG 2.2, 1.4.3 and 1.4.11: 4.5 for text, 3 for marks and edges."""
    light, dark = re.findall(r":root \{(.*?)\}", FILES["page.css"], re.S)
    named = dict(re.findall(r"--([\w-]+): (#\w+);", light))
    if scheme == "dark":
        named |= dict(re.findall(r"--([\w-]+): (#\w+);", dark))
    for front, back, least in PAIRS:
        a, b = sorted((brightness(named[front]), brightness(named[back])))
        assert (b + 0.05) / (a + 0.05) >= least, (front, back)


def brightness(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


# ---- the page in a browser


@dataclass
class Desk:
    """A browser with the page of a server whose artefact is at hand."""

    page: Any
    engine: Engine
    client: httpx.Client
    origin: str
    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def input(self, name: str) -> Any:
        return self.page.locator(f'[id="{name}"]')

    def user(self) -> dict[str, str]:
        return {f.get_attribute("id")[5:]: f.input_value() for f in self._all("#user input")}

    def ads(self) -> list[int]:
        return [int(f.input_value()) for f in self._all("#candidates input")]

    def ranking(self, label: str) -> list[tuple[int, float]]:
        """Returns (ad, score) as they are shown, best first."""
        at = self.engine.labels.index(label)
        return [
            (
                int(row.locator(".pick").inner_text().split()[1]),
                float(row.locator("[data-score]").nth(at).get_attribute("data-score")),
            )
            for row in self._all("#ranked tbody tr")
        ]

    def tokens(self) -> list[tuple[str, int | None, str, float, float]]:
        found = []
        for row in self._all("#tokens tbody tr"):
            event = row.get_attribute("data-event")
            found.append((
                row.get_attribute("data-column"), int(event) if event else None,
                row.locator(".value").inner_text(),
                float(row.locator("[data-change]").get_attribute("data-change")),
                float(row.locator("[data-score]").get_attribute("data-score")),
            ))  # fmt: skip
        return found

    def _all(self, what: str) -> list[Any]:
        return list(self.page.locator(what).all())

    def scored(self, user: dict[str, Any], ads: list[int], label: str) -> list[tuple[int, float]]:
        """Returns what the ranking must show."""
        batch = self.engine.encode_rank(user, [{"ad": ad} for ad in ads])
        scores = self.engine.score(batch)[label]
        order = np.argsort(-scores, kind="stable")
        return [(ads[i], float(scores[i])) for i in order]

    def told(self, row: dict[str, Any]) -> list[tuple[str, int | None, str, float, float]]:
        """Returns what the server says of the tokens of a row."""
        said = self.client.post("/v1/explain", json={"row": row}).json()["tokens"]
        names = ("column", "event", "value", "change", "probability_without")
        return [tuple(t[n] for n in names) for t in said][:12]

    def shows(self, user: dict[str, Any], ads: list[int], label: str = "click") -> None:
        self.page.wait_for_selector("#results:not(.stale)")
        assert self.ranking(label) == self.scored(user, ads, label)


@contextmanager
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("the page is tested in a browser, and there is none: install Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield running
        finally:
            running.close()


@pytest.fixture(scope="module")
def desk(log: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("page")
    make_artifact("din", log).save(folder / "artifact")
    with browser() as started, running(folder) as (_, client):
        page = started.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(20_000)
        it = Desk(page, Engine.load(folder / "artifact"), client, str(client.base_url))
        page.on("request", lambda r: it.hosts.add(r.url.split(":")[0] + ":" + r.url.split(":")[1]))
        page.on("pageerror", lambda error: it.errors.append(str(error)))
        page.on(
            "console",
            lambda m: it.errors.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.goto(it.origin)
        yield it
        page.close()


@pytest.fixture(autouse=True)
def no_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the browser says of a page that is sound: nothing but the status of refused requests."""
    yield
    if "desk" in request.fixturenames:
        it = request.getfixturevalue("desk")
        expected = re.compile(r"Failed to load resource: .* status of (401|422) ")
        assert not [error for error in it.errors if not expected.match(error)]
        assert it.hosts == {it.origin.rpartition(":")[0]}


@pytest.fixture
def open_desk(desk: Desk) -> Desk:
    """The page behind its gate, with the first example."""
    if desk.page.locator("#gate").is_visible():
        desk.page.fill("#token", TOKEN)
        desk.page.click("#gate button")
    desk.page.wait_for_selector("#work:not([hidden])")
    desk.page.select_option("#label", "click")
    desk.page.select_option("#example", "0")
    desk.page.click("#reset")
    desk.page.wait_for_selector("#results:not(.stale)")
    return desk


def test_a_wrong_token_opens_nothing(desk):
    page = desk.page
    page.wait_for_selector("#gate:not([hidden])")
    assert not page.locator("#work").is_visible()
    page.fill("#token", "0123456789abcdef-wrong")
    page.click("#gate button")
    page.wait_for_selector("#gate .problem")
    assert "no valid token" in page.locator("#gate .problem").inner_text()
    assert not page.locator("#work").is_visible()


def test_an_example_is_edited_scored_ranked_and_explained(open_desk):
    it, page = open_desk, open_desk.page
    example = it.engine.schema_example()
    assert page.locator("h1").inner_text() == "din"
    assert it.engine.fingerprint in page.locator("#origin").inner_text()
    assert "0.500" in page.locator("#metrics").inner_text()
    user, ads = dict(example["rank"]["user"]), [c["ad"] for c in example["rank"]["candidates"]]
    assert it.ads() == ads
    assert it.user()["past"] == ", ".join(map(str, user["past"]))
    assert it.user()["age"] == str(user["age"])
    it.shows(user, ads)
    before = it.ranking("click")

    user["age"], user["past"] = 3.5, [8, 8, 1]  # the user changes
    it.input("user.age").fill("3.5")
    it.input("user.past").fill("8, 8 ,1,")
    it.shows(user, ads)
    assert {s for _, s in it.ranking("click")}.isdisjoint(s for _, s in before)

    [(best, _), *_, (worst, _)] = it.ranking("click")  # the worst candidate becomes the best
    place = ads.index(worst)
    it.input(f"candidates[{place}].ad").fill(str(best))
    ads[place] = best
    it.shows(user, ads)
    assert [ad for ad, _ in it.ranking("click")][:2] == [best, best]
    assert page.locator("#ranked .moved.up").count() > 0

    chosen = int(page.locator("#ranked tr.chosen .pick").inner_text().split()[1])
    soon(lambda: it.tokens() == it.told(user | {"ad": chosen}))
    assert {("past", 0), ("past", 1), ("past", 2), ("past", None), ("ad", None)} <= {
        token[:2] for token in it.tokens()
    }


def test_a_candidate_is_chosen_with_the_keyboard(open_desk):
    it, page = open_desk, open_desk.page
    user = it.engine.schema_example()["rank"]["user"]
    third = it.ranking("click")[2][0]
    page.locator("#ranked .pick").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    soon(lambda: it.tokens() == it.told(user | {"ad": third}))
    assert page.locator("#ranked [aria-pressed=true]").inner_text() == f"ad {third}"
    it.input("user.age").fill("40")  # it stays chosen where its score changes
    soon(lambda: it.tokens() == it.told(user | {"ad": third, "age": 40}))
    ways = {sign: page.locator(f"#tokens .{sign}").count() for sign in ("up", "down")}
    changes = [token[3] for token in it.tokens()]
    assert ways["down"] == sum(change > 0 for change in changes)  # it would be higher without
    assert sum(ways.values()) == len(changes)


@pytest.mark.parametrize(
    ("name", "text", "sent", "where"),
    [
        ("price", "dear", "dear", "user.price"),
        ("picture", "1, 2, 3", [1, 2, 3], "user.picture"),
        ("picture", "1, x", [1, "x"], "user.picture[1]"),
        ("price", "1e300", 1e300, "column 'price', row 0"),
    ],
)
def test_an_error_stands_at_the_input_that_it_names(name, text, sent, where, open_desk):
    it, page = open_desk, open_desk.page
    shown, good = it.ranking("click"), it.input(f"user.{name}").input_value()
    it.input(f"user.{name}").fill(text)
    page.wait_for_selector("#user .problem")
    user = it.engine.schema_example()["rank"]["user"] | {name: sent}
    body = {"user": user, "candidates": [{"ad": ad} for ad in it.ads()]}
    problem = it.client.post("/v1/rank", json=body).json()
    assert problem["where"] == where
    said = page.locator("#user .problem").inner_text()
    for part in ("title", "where", "found", "expected", "fix"):
        assert problem[part] in said
    assert it.input(f"user.{name}").get_attribute("aria-invalid") == "true"
    named = it.input(f"user.{name}").get_attribute("aria-describedby").split()
    assert page.locator("#user .problem").get_attribute("id") in named
    assert page.locator("#results.stale").count() == 1  # the old scores do not pass for new ones
    assert it.ranking("click") == shown
    it.input(f"user.{name}").fill(good)
    page.wait_for_selector("#results:not(.stale)")
    assert page.locator(".problem, [aria-invalid]").count() == 0
    assert it.ranking("click") == shown


def test_candidates_are_added_copied_and_removed(open_desk):
    it, page = open_desk, open_desk.page
    user, ads = it.engine.schema_example()["rank"]["user"], it.ads()
    page.click("[aria-label='Remove candidate 1']")
    it.shows(user, ads[1:])
    page.click("[aria-label='Duplicate candidate 2']")
    it.shows(user, [*ads[1:3], ads[2], *ads[3:]])
    page.click("#add")
    last = len(ads)
    it.input(f"candidates[{last}].ad").fill("-5")  # never seen in training
    it.shows(user, [*ads[1:3], ads[2], *ads[3:], -5])
    for _ in range(len(ads)):
        page.click("[aria-label='Remove candidate 1']")
    it.shows(user, [-5])
    assert page.locator("[aria-label='Remove candidate 1']").is_disabled()


def test_examples_and_labels_are_picked(open_desk):
    it, page = open_desk, open_desk.page
    rows = it.engine.schema_example()["score"]["rows"]
    assert page.locator("#example option").count() == len(rows) >= 5
    page.select_option("#example", "4")
    user = {name: value for name, value in rows[4].items() if name != "ad"}
    it.shows(user, it.ads())
    page.select_option("#label", "buy")
    it.shows(user, it.ads(), "buy")
    orders = [[ad for ad, _ in it.scored(user, it.ads(), label)] for label in it.engine.labels]
    assert orders[0] != orders[1]


def test_what_is_typed_is_shown_as_text(open_desk):
    it, page = open_desk, open_desk.page
    text = "<img src=x onerror=\"document.title='broken'\">"
    it.input("user.user").fill(text)
    user = it.engine.schema_example()["rank"]["user"] | {"user": text}
    it.shows(user, it.ads())
    soon(lambda: text in page.locator("#tokens").inner_text())
    assert page.locator("img").count() == 0
    assert page.title() != "broken"


def test_a_late_answer_to_an_old_question_is_dropped(open_desk):
    it, page = open_desk, open_desk.page
    held: list[Any] = []

    def hold_the_first(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/v1/rank*", hold_the_first)
    it.input("user.age").fill("1")
    soon(lambda: held or page.wait_for_timeout(20))
    it.input("user.age").fill("59")
    user = it.engine.schema_example()["rank"]["user"] | {"age": 59}
    it.shows(user, it.ads())
    held[0].continue_()
    page.wait_for_timeout(300)  # as long as an answer takes, and longer
    it.shows(user, it.ads())
    page.unroute("**/v1/rank*")


VALUES: list[tuple[dict[str, bool], str, Any]] = [
    ({}, "7", "7"),
    ({}, " two words ", "two words"),
    ({}, "", None),
    ({"whole": True}, "7", 7),
    ({"whole": True}, "-7", -7),
    ({"whole": True}, "1e3", "1e3"),
    ({"whole": True}, "9007199254740993", "9007199254740993"),  # no float holds it
    ({"measure": True}, "1e3", 1000),
    ({"measure": True}, "1e999", "1e999"),
    ({"measure": True}, "3,5", "3,5"),
    ({"list": True}, "", None),
    ({"list": True}, "a, b,", ["a", "b"]),
    ({"list": True}, "a,,b", ["a", None, "b"]),
    ({"list": True}, '"a, b", "say ""so""",c d', ["a, b", 'say "so"', "c d"]),
    ({"list": True, "whole": True}, "1, x, 2", [1, "x", 2]),
]


def test_texts_become_the_values_that_they_stand_for(desk):
    script = """async (cases) => {
        const { typed, shown } = await import("./values.js");
        const first = cases.map(([field, text]) => typed(field, text));
        return [first, cases.map(([field], i) => typed(field, shown(first[i])))];
    }"""
    expected = [value for _, _, value in VALUES]
    given = [[kind, text] for kind, text, _ in VALUES]
    assert desk.page.evaluate(script, given) == [expected, expected]


def test_ids_that_no_float_holds_survive_the_browser(desk):
    script = """async (text) => {
        const { exact } = await import("./values.js");
        return JSON.parse(text, exact);
    }"""
    text = '{"a": [9007199254740993, 7, -0.5, 1e300], "b": "9007199254740993"}'
    read = {"a": ["9007199254740993", 7, -0.5, 1e300], "b": "9007199254740993"}
    assert desk.page.evaluate(script, text) == read


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(scheme, open_desk):
    page = open_desk.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        channels = [int(c) for c in re.findall(r"\d+", paper)]
        assert (max(channels) < 64) == (scheme == "dark")
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})
