"""Small charts as inline SVG. Their colours are those of the page's style sheet, which follows light and dark schemes.

Matplotlib draws the plots of report.md. Its SVG has fixed colours, text that is too small on a telephone, and styles
inside the elements, which the security policy of the page refuses. These charts have classes, and titles of points.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 18, 12, 42

MAX_POINTS = 600
"""Points of a line or a cloud, at most"""

Coordinates = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """The scale of an axis: from a value to a fraction of its length."""

    label: str
    low: float
    high: float
    log: bool = False

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

    def marks(self) -> list[tuple[float, str]]:
        """The ticks with their texts, which have equally many digits after the point."""
        ticks = self.ticks()
        if self.log:
            return [(value, f"{value:,g}") for value in ticks]
        digits = max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in ticks), default=0)
        return [(value, f"{value:,.{digits}f}") for value in ticks]


def axis_around(label: str, values: Iterable[float]) -> Axis:
    """Returns a linear axis that contains the values, with a margin; none of it is below 0 if no value is."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(label, low - margin if low < 0 else max(0.0, low - margin), high + margin)


def percent_axis(label: str, values: Iterable[float] = (0.0, 1.0)) -> Axis:
    """Returns an axis in percent that contains these fractions, with a margin, within 0 to 100."""
    around = axis_around(label, [100 * value for value in values])
    return Axis(label, around.low, min(100.0, around.high))


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
    elements: list[Markup] = field(default_factory=list)

    def position(self, point: Coordinates) -> Coordinates:
        """Returns where a point is, in units of the drawing."""
        inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        x, y = self.x.fraction(point[0]), self.y.fraction(point[1])
        return round(LEFT + x * inner_width, 1), round(HEIGHT - BOTTOM - y * inner_height, 1)

    def line(self, points: Sequence[Coordinates], kind: str) -> None:
        """Adds a line through the points. ``kind`` names its styles."""
        if points:
            path = "L".join("{:g} {:g}".format(*self.position(point)) for point in thinned(points))
            self.elements.append(Markup('<path class="line {}" d="M{}"/>').format(kind, path))

    def dots(self, points: Sequence[Coordinates], kind: str, titles: Sequence[str], radius: float = 4) -> None:
        """Adds a dot for each point, which shows its title below the pointer."""
        for point, title in zip(points, titles, strict=True):
            dot = Markup('<circle class="dot {}" cx="{:g}" cy="{:g}" r="{:g}"><title>{}</title></circle>')
            self.elements.append(dot.format(kind, *self.position(point), radius, title))

    def bar(self, left: float, right: float, low: float, high: float, kind: str, title: str) -> None:
        """Adds a rectangle from ``(left, low)`` to ``(right, high)``."""
        (x, bottom), (end, top) = self.position((left, low)), self.position((right, high))
        form = Markup('<rect class="bar {}" x="{:g}" y="{:g}" width="{:g}" height="{:g}"><title>{}</title></rect>')
        self.elements.append(form.format(kind, x, top, max(end - x, 0.5), max(bottom - top, 0), title))

    def text(self, point: Coordinates, text: str, dy: float = 0) -> None:
        """Adds a text, centred at a point."""
        x, y = self.position(point)
        form = Markup('<text class="note" x="{:g}" y="{:g}" text-anchor="middle">{}</text>')
        self.elements.append(form.format(x, y + dy, text))

    def marker(self, point: Coordinates) -> None:
        """Adds the mark that the page's script moves."""
        form = Markup('<circle class="dot marker" cx="{:g}" cy="{:g}" r="7"/>')
        self.elements.append(form.format(*self.position(point)))

    def render(self) -> Markup:
        """Returns the SVG element."""
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for value, text in self.y.marks():
            y = self.position((self.x.low, value))[1]
            parts.append(Markup('<path class="grid" d="M{} {:g}H{}"/>').format(LEFT, y, right))
            form = Markup('<text class="tick" x="{}" y="{:g}" text-anchor="end">{}</text>')
            parts.append(form.format(LEFT - 6, y + 4, text))
        for value, text in self.x.marks():
            x = self.position((value, self.y.low))[0]
            parts.append(Markup('<path class="grid" d="M{:g} {}v5"/>').format(x, bottom))
            form = Markup('<text class="tick" x="{:g}" y="{}" text-anchor="middle">{}</text>')
            parts.append(form.format(x, bottom + 17, text))
        parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, bottom, right))
        label = Markup('<text class="label" x="{:g}" y="{}" text-anchor="middle">{}</text>')
        parts.append(label.format((LEFT + right) / 2, HEIGHT - 6, self.x.label))
        side = Markup('<text class="label" transform="translate(12 {:g})rotate(-90)" text-anchor="middle">{}</text>')
        parts.append(side.format((TOP + bottom) / 2, self.y.label))
        frame = Markup(
            '<svg viewBox="0 0 {0} {1}" role="img" aria-labelledby="{2}"><title id="{2}">{3}</title>{4}</svg>'
        )
        content = Markup("").join([*parts, *self.elements])
        return frame.format(WIDTH, HEIGHT, f"chart-{self.name}", self.title, content)


def thinned(points: Sequence[Coordinates], limit: int = MAX_POINTS) -> Sequence[Coordinates]:
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
    frame = Markup(
        '<svg class="stack" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    )
    return frame.format(title, Markup("").join(parts))
