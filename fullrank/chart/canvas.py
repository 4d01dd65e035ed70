"""The drawing surface under the charts: title, axes, legend, lines, points and their colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeGuard

from fullrank.errors import EmptyInputError

WIDTH = 680  # units of the view box; the element scales to its container
LEFT, RIGHT, _SIZE = 64, 26, 12  # margins and font size
_LIGHT = ("#0b6fb8", "#d1490c", "#0a8a63", "#a2479b", "#b07a00", "#3d4ec9", "#7a7f87", "#b3263a")
_DARK = ("#58b4f5", "#ff8a4c", "#3ecf9f", "#e08bd8", "#f0b83f", "#9aa5ff", "#aeb4bc", "#ff7186")
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "6 2 2 2")
_LARGE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

Value = float | None


@dataclass(frozen=True)
class Series:
    """One line, or one cloud of points.

    Args:
        name: in the legend; an empty name stays out of it.
        x: positions.
        y: heights, as many; None is a gap.
        labels: a name per point, drawn where there is room and shown on hover.
        dashed: a reference (a bound, a ceiling) rather than a measurement.
        area: fill down to the axis, for densities.
        marks: draw a dot at each point of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Value]
    labels: Sequence[str] = ()
    dashed: bool = False
    area: bool = False
    marks: bool = False


@dataclass
class Canvas:
    """Collects elements under a title."""

    title: str
    height: int
    parts: list[str] = field(default_factory=list)
    width: int = WIDTH

    def add(self, element: str) -> None:
        """Appends an element."""
        self.parts.append(element)

    def text(self, x: float, y: float, words: str, kind: str = "", turn: str = "") -> None:
        """Writes words at a place; `kind` holds style classes, `turn` a rotation."""
        turned = f' transform="{turn}"' if turn else ""
        self.add(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{turned}>{escape(words)}</text>')

    def place(self, panel: Canvas, x: float, y: float) -> None:
        """Puts a whole chart into this one."""
        self.add(f'<g transform="translate({x:.1f} {y:.1f})">{panel._body()}</g>')

    def render(self) -> str:
        """Returns the finished `<svg>` element."""
        title, size = escape(self.title), f'width="{self.width}" height="{self.height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="frc" role="img" aria-label="{title}" '
            f'viewBox="0 0 {self.width} {self.height}" {size}>'
            f"<title>{title}</title><style>{_STYLE}</style>{_HATCH}{self._body()}</svg>"
        )

    def _body(self) -> str:
        head = f'<text class="h" x="{LEFT - 48}" y="20">{escape(self.title)}</text>'
        return head + "".join(self.parts)


@dataclass(frozen=True)
class Axis:
    """Maps values to view-box units."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def around(
        cls, values: Sequence[float], log: bool, start: float, end: float, pad: float = 0.0
    ) -> Axis:
        """Builds an axis that shows these values; a log axis ends on round ones."""
        low, high = min(values) - pad, max(values) + pad
        if log:
            inside = (low, high)
            low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
            high = high if high > low else low * 10
            low = max((t for t in _round(low, high) if t <= inside[0]), default=low)
            high = min((t for t in _round(low, high) if t >= inside[1] and t > low), default=high)
        elif high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, but for rounding
            low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
        return cls(low, high, start, end, log)

    def at(self, value: float) -> float:
        """Returns the place of a value, held inside the axis."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, 1e-300))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Returns round values, about as many as asked for."""
        if self.log:
            if self.high < 101 * self.low:
                return _round(self.low, self.high)
            first = math.ceil(math.log10(self.low) - 1e-9)
            last = math.floor(math.log10(self.high) + 1e-9)
            decades = max(1, math.ceil((last - first) / about))
            return [10.0**e for e in range(first, last + 1, decades)]
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first
        return [round((first + i) * step, 12) for i in range(count + 1)]


class Plot(Canvas):
    """A canvas with two axes, a legend above them, and a zone for values below the floor."""

    x: Axis
    y: Axis

    def __init__(
        self,
        title: str,
        series: Sequence[Series],
        names: Sequence[str] = (),
        *,
        below: bool = False,
        filled: bool = False,
        width: int = WIDTH,
    ) -> None:
        super().__init__(title, 0, width=width)
        self.names = [short(name) for name in names]
        self.zone = 36 if below else 0
        self.top = self._legend(series, filled) + 14
        self.bottom = self.top + 250
        # cost: names that would touch are turned, and then need height
        room = (self.width - LEFT - RIGHT) / max(1, len(names))
        self.turned = any(6.4 * len(n) > room for n in self.names)
        drop = 4.6 * max((len(n) for n in self.names), default=0) if self.turned else 0.0
        self.height = int(self.bottom + self.zone + 46 + drop)
        self.taken: list[tuple[float, float, float, float]] = []

    def _legend(self, series: Sequence[Series], filled: bool) -> float:
        x, y = float(LEFT), 42.0
        shown = [(i, s) for i, s in enumerate(series) if s.name]
        for i, s in shown:
            width = 44 + 6.6 * len(s.name)
            if x > LEFT and x + width > self.width - RIGHT:
                x, y = float(LEFT), y + 18
            dash = f' stroke-dasharray="{"5 4" if s.dashed else _dash(i)}"'
            kind = "a" if s.dashed else f"l{i % 8}"
            if filled:
                self.add(
                    f'<rect class="f{i % 8}" x="{x + 10:.1f}" y="{y - 10}" width="12" height="12" '
                    'rx="2"/>'
                )
            else:
                self.add(f'<path class="{kind}"{dash} d="M{x:.1f} {y - 4}h24"/>')
            self.text(x + 30, y, s.name)
            x += width
        return y if shown else y - 14

    def scale(
        self,
        series: Sequence[Series],
        log_x: bool,
        log_y: bool,
        y_range: tuple[float, float] | None,
        floor: float | None,
        pad: float = 0.0,
    ) -> None:
        """Chooses both axes so that every drawable point is inside."""
        self.floor = floor
        points = [
            (float(x), float(y))
            for s in series
            for x, y in zip(s.x, s.y, strict=True)
            if finite(y) and finite(x) and (x > 0 or not log_x) and (y > 0 or not log_y)
        ]
        drawn = [p[1] for p in points if floor is None or p[1] > floor]
        if floor is not None:
            drawn = drawn or [floor * 10]
        require(bool(points) and bool(drawn), self.title)
        if floor is not None and log_y:
            drawn.append(floor)
        across = [p[0] for p in points]
        self.x = Axis.around(across, log_x, LEFT, self.width - RIGHT, pad)
        self.y = Axis.around(list(y_range or drawn), log_y, self.bottom, self.top)
        if y_range is None and not log_y:  # round ends and a little air
            ticks = self.y.ticks(6)
            step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
            low = step * math.floor(self.y.low / step + 1e-9)
            high = step * math.ceil(self.y.high / step - 1e-9)
            self.y = Axis(low, high, self.bottom, self.top, False)

    def frame(self, x: str, y: str) -> None:
        """Draws grid, ticks, axis labels and the zone below the floor."""
        right, base = self.width - RIGHT, self.bottom + self.zone
        for tick in self.y.ticks(6):
            at = self.y.at(tick)
            self.add(f'<path class="g" d="M{LEFT} {at:.1f}H{right}"/>')
            self.text(LEFT - 8, at + 4, number(tick), "e s")
        if self.zone:
            box = f'x="{LEFT}" y="{self.bottom}" width="{right - LEFT}" height="{self.zone}"'
            self.add(f'<rect class="z" {box}/>')
            self.text(LEFT - 8, self.bottom + self.zone - 8, "below", "e s")
            self.text(right - 6, self.bottom + 13, "below the floor: not data", "e s")
        named = range(0, len(self.names), max(1, math.ceil(len(self.names) / 60)))
        for tick in named if self.names else self.x.ticks(8):
            at = self.x.at(tick)
            words = self.names[int(tick)] if self.names else number(tick)
            turn = f"rotate(-40 {at:.1f} {base + 14})" if self.turned else ""
            self.text(at, base + (14 if self.turned else 18), words, "e s" if turn else "m s", turn)
            self.add(f'<path class="a" d="M{at:.1f} {base}v4"/>')
        self.add(f'<path class="a" d="M{LEFT} {self.top}V{base}H{right}"/>')
        self.text((LEFT + right) / 2, self.height - 8, x, "m s")
        middle = (self.top + base) / 2
        self.text(14, middle, y, "m s", f"rotate(-90 14 {middle:.1f})")

    def line(self, s: Series, i: int) -> None:
        """Draws one line, broken at gaps, with ticks in the zone for what lies under the floor."""
        pieces: list[list[tuple[float, float]]] = [[]]
        for x, y in zip(s.x, s.y, strict=True):
            if self.floor is not None and y is not None and y <= self.floor:
                at = self.x.at(x)
                low = self.bottom + 16 + 4 * (i % 4)
                self.add(f'<path class="l{i % 8} b" d="M{at:.1f} {low}v5"/>')
                pieces.append([])
            elif finite(y) and (y > 0 or not self.y.log) and (x > 0 or not self.x.log):
                pieces[-1].append((self.x.at(x), self.y.at(y)))
            else:
                pieces.append([])
        kind = "a" if s.dashed else f"l{i % 8}"
        dash = "5 4" if s.dashed else _dash(i)
        for piece in (p for p in pieces if p):
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in piece)
            if s.area:
                ends = f"V{self.bottom}H{piece[0][0]:.1f}Z"
                self.add(f'<path class="f{i % 8}" fill-opacity=".18" d="{path}{ends}"/>')
            self.add(f'<path class="{kind}" stroke-dasharray="{dash}" d="{path}"/>')
            if s.marks or len(piece) == 1:
                for x, y in piece:
                    self.add(f'<circle class="f{i % 8}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')

    def points(self, s: Series, i: int) -> None:
        """Draws one cloud, then the labels that fit."""
        placed = []
        for j, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
            if not finite(y) or (self.x.log and x <= 0) or (self.y.log and y <= 0):
                continue
            at, up = self.x.at(x), self.y.at(y)
            label = s.labels[j] if s.labels else ""
            tip = f"{label} ({number(x)}, {number(y)})"
            self.add(
                f'<circle class="f{i % 8}" fill-opacity=".85" cx="{at:.1f}" cy="{up:.1f}" r="4">'
                f"<title>{escape(tip)}</title></circle>"
            )
            placed.append((at, up, label))
            self.taken.append((at - 4, up - 4, at + 4, up + 4))
        for at, up, label in placed:
            self.label(at, up, short(label))

    def label(self, x: float, y: float, words: str) -> bool:
        """Writes words beside a point where they hit nothing; says whether there was room."""
        places = (x + 7, y + 4, ""), (x - 7, y + 4, "e"), (x, y - 8, "m"), (x, y + 18, "m")
        return any(self._fits(at, base, words, anchor) is not None for at, base, anchor in places)

    def name(self, x: float, y: float, words: str) -> None:
        """Writes words as near to a point as they find room, with a line to it where far."""
        if self.label(x, y, words):
            return
        for reach in range(24, 400, 8):
            for turn in range(16):
                angle = math.pi * turn / 8
                at, up = x + reach * math.cos(angle), y + reach * math.sin(angle)
                anchor = "m" if turn in (4, 12) else "e" if 4 < turn < 12 else ""
                if (box := self._fits(at, up + 4, words, anchor)) is not None:
                    near, edge = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
                    self.add(f'<path class="n" d="M{x:.1f} {y:.1f}L{near:.1f} {edge:.1f}"/>')
                    return

    def _fits(
        self, at: float, base: float, words: str, anchor: str
    ) -> tuple[float, float, float, float] | None:
        """Writes words where they hit nothing, and returns their box."""
        width = 6.4 * len(words)
        left = at - {"": 0.0, "m": width / 2, "e": width}[anchor]
        box = (left - 2, base - 10, left + width + 2, base + 2)
        inside = box[0] > LEFT and box[2] < self.width - RIGHT
        inside = inside and box[1] > self.top and box[3] < self.bottom
        if not words or not inside or any(_touch(box, other) for other in self.taken):
            return None
        self.taken.append(box)
        self.text(at, base, words, f"{anchor} s".strip())
        return box

    def whisker(self, x: float, low: float, high: float) -> None:
        """Draws an error bar."""
        a, b = self.y.at(low), self.y.at(high)
        self.add(f'<path class="w" d="M{x:.1f} {a:.1f}V{b:.1f}m-3 0h6M{x - 3:.1f} {a:.1f}h6"/>')


def _round(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times a power of ten from low to high."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high))
    every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    return [t for t in every if 0.999 * low <= t <= 1.001 * high]


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _dash(i: int) -> str:
    """Returns the dashes of a line; the ninth has the colour of the first, but not its dashes."""
    return _DASHES[(i + i // 8) % 8]


def finite(value: Value) -> TypeGuard[float]:
    """Says whether a value can be drawn."""
    return value is not None and math.isfinite(value)


def number(value: float) -> str:
    """Returns a value as short text."""
    if 1e4 <= abs(value) < 1e12:
        size, unit = next((s, u) for s, u in _LARGE if abs(value) >= s)
        return f"{value / size:.4g}{unit}"
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def short(name: str, most: int = 22) -> str:
    """Returns a name cut to a length."""
    return name if len(name) <= most else name[: most - 1] + "…"


def require(present: bool, title: str) -> None:
    """Raises an EmptyInputError unless there is something to draw."""
    if not present:
        raise EmptyInputError(
            "a chart has nothing to draw",
            where=f"chart '{title}'",
            found="no finite value",
            expected="at least one",
            fix="leave the chart out when nothing was measured",
        )


def _colours(palette: Sequence[str]) -> str:
    return "".join(f"--s{i}:{colour};" for i, colour in enumerate(palette))


_HATCH = (
    '<defs><pattern id="frh" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path d="M0 0V6" class="hl"/></pattern></defs>'
)
_STYLE = (
    f".frc{{font:{_SIZE}px system-ui,sans-serif;max-width:100%;height:auto;--ink:#1d2329;"
    f"--soft:#56606b;--grid:#e4e8ec;--back:#fff;{_colours(_LIGHT)}}}"
    "@media(prefers-color-scheme:dark){.frc{--ink:#e7eaee;--soft:#a3adb8;--grid:#333b44;--back:#12161a;"
    f"{_colours(_DARK)}}}}}"
    ".frc text{fill:var(--ink)}.frc .s{fill:var(--soft);font-size:11px}.frc .t{font-size:10px}"
    ".frc .k{fill:var(--back)}.frc .m{text-anchor:middle}.frc .e{text-anchor:end}"
    ".frc .h{font-size:14px;font-weight:600}"
    ".frc .g{stroke:var(--grid)}.frc .a{stroke:var(--soft);fill:none}"
    ".frc .n{stroke:var(--soft);stroke-width:.8;fill:none}"
    ".frc .w{stroke:var(--ink);stroke-width:1.3;fill:none}.frc .z{fill:url(#frh)}"
    ".frc .hl{stroke:var(--grid);stroke-width:3}.frc .b{stroke-width:1!important}"
    + "".join(
        f".frc .l{i}{{stroke:var(--s{i});stroke-width:2;fill:none}}.frc .f{i}{{fill:var(--s{i})}}"
        for i in range(8)
    )
)
