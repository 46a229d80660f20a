"""Small charts as inline SVG. Their colours are those of the page's style sheet, which follows light and dark schemes.

Matplotlib draws the plots of report.md. Its SVG holds fixed colours and styles inside its elements, and its text does not
fit a telephone. These charts have classes instead of styles, and a title for each point.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 42

MAX_POINTS = 600
"""Points of a line or a cloud, at most"""

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """The scale of an axis: from a value to a fraction of its length."""

    label: str
    low: float
    high: float
    log: bool = False
    format: Callable[[float], str] = "{:,g}".format

    def fraction(self, value: float) -> float:
        """Where a value is, from 0 to 1; values outside are moved to the end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Round numbers within the axis: 3 to 7, if the axis has so many."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            by_factors = ([f * 10.0**k for k in powers for f in factors] for factors in ((1,), (1, 3), (1, 2, 5)))
            inside = [[value for value in values if self.low <= value <= self.high] for values in by_factors]
            return next((values for values in inside if len(values) >= 3), inside[-1])
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def axis_around(label: str, values: Iterable[float], **options: object) -> Axis:
    """Returns a linear axis that contains the values, with a margin."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(label, low - margin, high + margin, **options)  # type: ignore[arg-type]


def percent_axis(label: str, values: Iterable[float] = (0.0, 1.0)) -> Axis:
    """Returns an axis for fractions, named in percent, that contains the values, with a margin, and ends at 0 and 100."""
    around = axis_around(label, [100 * value for value in values])
    return Axis(label, max(0.0, around.low), min(100.0, around.high))


@dataclass
class Chart:
    """A chart with two axes.

    Args:
        name: unique on the page, letters only.
        title: what the chart shows, for those who do not see it.
        x: horizontal axis.
        y: vertical axis.
    """

    name: str
    title: str
    x: Axis
    y: Axis
    width: int = WIDTH
    height: int = HEIGHT
    elements: list[Markup] = field(default_factory=list)

    def place(self, point: Point) -> Point:
        """Returns where a point is, in units of the drawing."""
        inner_width, inner_height = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM
        x, y = self.x.fraction(point[0]), self.y.fraction(point[1])
        return round(LEFT + x * inner_width, 1), round(self.height - BOTTOM - y * inner_height, 1)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """Adds a line through the points; a point that is not finite interrupts it. ``kind`` names its styles."""
        parts, pen = [], "M"
        for point in thinned(points):
            if not all(map(math.isfinite, point)):
                pen = "M"
                continue
            parts.append("{}{:g} {:g}".format(pen, *self.place(point)))
            pen = "L"
        if parts:
            self.elements.append(Markup('<path class="line {}" d="{}"/>').format(kind, "".join(parts)))

    def dots(self, points: Sequence[Point], kind: str, titles: Sequence[str] = (), radius: float = 4) -> None:
        """Adds a dot for each point, which shows its title below the pointer."""
        for position, point in enumerate(points):
            x, y = self.place(point)
            title = Markup("<title>{}</title>").format(titles[position]) if titles else Markup()
            dot = Markup('<circle class="dot {}" cx="{:g}" cy="{:g}" r="{:g}">{}</circle>')
            self.elements.append(dot.format(kind, x, y, radius, title))

    def bar(self, left: float, right: float, low: float, high: float, kind: str, title: str = "") -> None:
        """Adds a rectangle from ``(left, low)`` to ``(right, high)``."""
        (x, bottom), (end, top) = self.place((left, low)), self.place((right, high))
        text = Markup("<title>{}</title>").format(title) if title else Markup()
        form = Markup('<rect class="bar {}" x="{:g}" y="{:g}" width="{:g}" height="{:g}">{}</rect>')
        self.elements.append(form.format(kind, x, top, max(end - x, 0.5), max(bottom - top, 0), text))

    def text(self, point: Point, text: str, anchor: str = "middle", dx: float = 0, dy: float = 0) -> None:
        """Adds a text at a point; ``anchor`` is start, middle or end."""
        x, y = self.place(point)
        form = Markup('<text class="note" x="{:g}" y="{:g}" text-anchor="{}">{}</text>')
        self.elements.append(form.format(x + dx, y + dy, anchor, text))

    def marker(self, point: Point) -> None:
        """Adds the mark that the page's script moves."""
        form = Markup('<circle class="dot marker" cx="{:g}" cy="{:g}" r="7"/>')
        self.elements.append(form.format(*self.place(point)))

    def render(self) -> Markup:
        """Returns the SVG element."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        parts = []
        for value in self.y.ticks():
            y = self.place((self.x.low, value))[1]
            parts.append(Markup('<path class="grid" d="M{} {:g}H{}"/>').format(LEFT, y, right))
            form = Markup('<text class="tick" x="{}" y="{:g}" text-anchor="end">{}</text>')
            parts.append(form.format(LEFT - 6, y + 4, self.y.format(value)))
        for value in self.x.ticks():
            x = self.place((value, self.y.low))[0]
            parts.append(Markup('<path class="grid" d="M{:g} {}v5"/>').format(x, bottom))
            form = Markup('<text class="tick" x="{:g}" y="{}" text-anchor="middle">{}</text>')
            parts.append(form.format(x, bottom + 17, self.x.format(value)))
        parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, bottom, right))
        label = Markup('<text class="label" x="{:g}" y="{}" text-anchor="middle">{}</text>')
        parts.append(label.format((LEFT + right) / 2, self.height - 6, self.x.label))
        side = Markup('<text class="label" transform="translate(13 {:g})rotate(-90)" text-anchor="middle">{}</text>')
        parts.append(side.format((TOP + bottom) / 2, self.y.label))
        frame = Markup('<svg viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}"><title id="{2}">{3}</title>{4}</svg>')
        content = Markup("").join([*parts, *self.elements])
        return frame.format(self.width, self.height, f"chart-{self.name}", self.title, content)


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> Sequence[Point]:
    """Returns at most so many points, evenly spread, with the first and the last."""
    if len(points) <= limit:
        return points
    return [points[round(k * (len(points) - 1) / (limit - 1))] for k in range(limit)]


def stacked_bar(shares: Sequence[float], title: str) -> Markup:
    """Returns one bar whose parts are the shares, which sum to 1; the page's script can change them."""
    parts, left = [], 0.0
    for share in shares:
        form = Markup('<rect x="{:.2f}" y="0" width="{:.2f}" height="12"/>')
        parts.append(form.format(100 * left, 100 * share))
        left += share
    frame = Markup('<svg class="stack" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>')
    return frame.format(title, Markup("").join(parts))
