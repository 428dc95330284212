"""Drawn scenes: what is in a picture, the picture, five captions and a few questions.

A scene is one of three kinds: one object with a size and a texture, several objects of one sort, or two objects
side by side. (colour, kind) pairs in `HELD_OUT` never occur in training scenes; every main object of a
validation or test scene is one of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "blue": (38, 84, 214),
    "yellow": (250, 206, 40),
    "green": (30, 130, 60),
    "purple": (132, 54, 170),
    "white": (245, 245, 245),
}
BACKGROUNDS = {
    "on the grass": ((150, 205, 245), (120, 190, 90)),
    "on the sand": ((190, 225, 250), (232, 205, 150)),
    "in the snow": ((120, 140, 165), (215, 225, 235)),
    "at night": ((18, 22, 52), (44, 44, 62)),
}
KINDS = ("house", "tree", "car", "boat", "fish", "flower", "star", "cup")
HELD_OUT = frozenset((colour, KINDS[(2 * i + j) % 8]) for i, colour in enumerate(COLOURS) for j in (0, 3))
"""Two kinds of each colour; every kind keeps at least four colours for training."""
NUMBERS = {2: "two", 3: "three"}
SIDE = 224
DRAWN = 2 * SIDE  # drawn at twice the size, then halved: smooth edges


@dataclass(frozen=True)
class Thing:
    """One object."""

    colour: str
    kind: str
    size: str = "large"
    texture: str = "plain"


@dataclass(frozen=True)
class Scene:
    """Everything that captions and questions can be about."""

    background: str
    things: tuple[Thing, ...]
    """One, two different ones from left to right, or several equal ones."""

    @property
    def repeated(self) -> bool:
        """Several objects of one sort."""
        return len(self.things) > 1 and len(set(self.things)) == 1


def make_scene(chooser: random.Random, training: bool) -> Scene:
    """A random scene; the main object's (colour, kind) is held out exactly when not training."""
    pairs = [(colour, kind) for colour in COLOURS for kind in KINDS]
    seen = [pair for pair in pairs if pair not in HELD_OUT]
    main = chooser.choice(seen if training else sorted(HELD_OUT))
    background = chooser.choice(list(BACKGROUNDS))
    form = chooser.choice(("single", "several", "pair"))
    if form == "single":
        size, texture = (
            chooser.choice(("large", "small")),
            chooser.choice(("plain", "plain", "striped", "dotted")),
        )
        return Scene(background, (Thing(*main, size, texture),))
    if form == "several":
        return Scene(background, (Thing(*main),) * chooser.choice((2, 3)))
    other = chooser.choice([pair for pair in seen if pair[1] != main[1]])
    things = [Thing(*main), Thing(*other)]
    chooser.shuffle(things)
    return Scene(background, tuple(things))


def draw(scene: Scene, chooser: random.Random) -> Image.Image:
    """The picture, 224 x 224 RGB."""
    sky, ground = BACKGROUNDS[scene.background]
    image = Image.new("RGB", (DRAWN, DRAWN), sky)
    ImageDraw.Draw(image).rectangle((0, DRAWN * 0.6, DRAWN, DRAWN), fill=ground)
    count = len(scene.things)
    for index, thing in enumerate(scene.things):
        share = {1: 0.66, 2: 0.46, 3: 0.32}[count] * (0.55 if thing.size == "small" else 1.0)
        width = DRAWN * share * chooser.uniform(0.92, 1.0)
        middle = DRAWN * (index + 0.5) / count + chooser.uniform(-0.02, 0.02) * DRAWN
        bottom = DRAWN * chooser.uniform(0.78, 0.9)
        _draw_thing(image, thing, middle - width / 2, bottom - width, width)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _draw_thing(image: Image.Image, thing: Thing, left: float, top: float, width: float) -> None:
    """A thing in the square at (left, top); details in dark or light, so that kinds stay apart in any colour."""
    body = Image.new("L", image.size)  # where the object's own colour goes
    pen, detail = ImageDraw.Draw(body), ImageDraw.Draw(image)

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return left + x0 * width, top + y0 * width, left + x1 * width, top + y1 * width

    def points(*pairs: tuple[float, float]) -> list[tuple[float, float]]:
        return [(left + x * width, top + y * width) for x, y in pairs]

    _BODIES[thing.kind](pen, box, points)
    fill = Image.new("RGB", image.size, COLOURS[thing.colour])
    marks = ImageDraw.Draw(fill)
    mark = (70, 70, 70) if thing.colour in ("white", "yellow") else (250, 250, 250)
    step = width / 7
    if thing.texture == "striped":
        for i in range(1, 8, 2):
            marks.rectangle((left + i * step, top, left + (i + 0.7) * step, top + width), fill=mark)
    if thing.texture == "dotted":
        for i in range(7):
            for j in range(7):
                x, y = left + (i + 0.5) * step, top + (j + 0.5) * step
                marks.ellipse((x - step / 4, y - step / 4, x + step / 4, y + step / 4), fill=mark)
    image.paste(fill, mask=body)
    _DETAILS[thing.kind](detail, box, points)


Box = Callable[[float, float, float, float], tuple[float, float, float, float]]
Points = Callable[..., list[tuple[float, float]]]
Pen = ImageDraw.ImageDraw
DARK, GLASS, WOOD = (40, 40, 45), (205, 230, 245), (110, 74, 44)


def _petals(pen: Pen, box: Box) -> None:
    for i in range(6):
        x, y = 0.5 + 0.24 * math.cos(i * math.pi / 3), 0.34 + 0.24 * math.sin(i * math.pi / 3)
        pen.ellipse(box(x - 0.15, y - 0.15, x + 0.15, y + 0.15), fill=255)


def _star(pen: Pen, points: Points) -> None:
    corners = []
    for i in range(10):
        radius, angle = (0.5, 0.21)[i % 2], -math.pi / 2 + i * math.pi / 5
        corners.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    pen.polygon(points(*corners), fill=255)


def _body_house(pen: Pen, box: Box, points: Points) -> None:
    pen.rectangle(box(0.12, 0.45, 0.88, 1.0), fill=255)
    pen.polygon(points((0.0, 0.47), (0.5, 0.05), (1.0, 0.47)), fill=255)


def _body_tree(pen: Pen, box: Box, points: Points) -> None:
    for x, y in ((0.3, 0.42), (0.7, 0.42), (0.5, 0.25)):
        pen.ellipse(box(x - 0.27, y - 0.25, x + 0.27, y + 0.25), fill=255)


def _body_car(pen: Pen, box: Box, points: Points) -> None:
    pen.rounded_rectangle(box(0.0, 0.6, 1.0, 0.86), radius=12, fill=255)
    pen.polygon(points((0.2, 0.62), (0.32, 0.38), (0.7, 0.38), (0.84, 0.62)), fill=255)


def _body_boat(pen: Pen, box: Box, points: Points) -> None:
    pen.polygon(points((0.0, 0.72), (1.0, 0.72), (0.82, 0.95), (0.18, 0.95)), fill=255)
    pen.polygon(points((0.54, 0.05), (0.54, 0.64), (0.95, 0.64)), fill=255)


def _body_fish(pen: Pen, box: Box, points: Points) -> None:
    pen.ellipse(box(0.0, 0.3, 0.76, 0.8), fill=255)
    pen.polygon(points((0.66, 0.55), (1.0, 0.28), (1.0, 0.82)), fill=255)


def _body_cup(pen: Pen, box: Box, points: Points) -> None:
    pen.polygon(points((0.1, 0.2), (0.76, 0.2), (0.68, 1.0), (0.18, 1.0)), fill=255)
    pen.arc(box(0.6, 0.32, 0.98, 0.78), -100, 100, fill=255, width=18)


_BODIES: dict[str, Callable[[Pen, Box, Points], None]] = {
    "house": _body_house,
    "tree": _body_tree,
    "car": _body_car,
    "boat": _body_boat,
    "fish": _body_fish,
    "flower": lambda pen, box, points: _petals(pen, box),
    "star": lambda pen, box, points: _star(pen, points),
    "cup": _body_cup,
}


def _detail_house(pen: Pen, box: Box, points: Points) -> None:
    pen.rectangle(box(0.42, 0.68, 0.6, 1.0), fill=WOOD)
    for x in (0.2, 0.66):
        pen.rectangle(box(x, 0.56, x + 0.15, 0.7), fill=GLASS, outline=DARK, width=3)


def _detail_car(pen: Pen, box: Box, points: Points) -> None:
    pen.polygon(points((0.28, 0.6), (0.36, 0.43), (0.67, 0.43), (0.76, 0.6)), fill=GLASS)
    for x in (0.22, 0.78):
        pen.ellipse(box(x - 0.12, 0.74, x + 0.12, 0.98), fill=DARK)
        pen.ellipse(box(x - 0.05, 0.81, x + 0.05, 0.91), fill=(190, 190, 190))


def _detail_flower(pen: Pen, box: Box, points: Points) -> None:
    pen.rectangle(box(0.48, 0.7, 0.52, 1.0), fill=(40, 110, 50))
    pen.ellipse(box(0.38, 0.22, 0.62, 0.46), fill=(240, 150, 40))


_DETAILS: dict[str, Callable[[Pen, Box, Points], None]] = {
    "house": _detail_house,
    "tree": lambda pen, box, points: pen.rectangle(box(0.44, 0.6, 0.56, 1.0), fill=WOOD),
    "car": _detail_car,
    "boat": lambda pen, box, points: pen.rectangle(box(0.49, 0.03, 0.53, 0.74), fill=WOOD),
    "fish": lambda pen, box, points: pen.ellipse(box(0.12, 0.44, 0.22, 0.54), fill=DARK),
    "flower": _detail_flower,
    "star": lambda pen, box, points: None,
    "cup": lambda pen, box, points: pen.ellipse(box(0.1, 0.15, 0.76, 0.26), fill=WOOD),
}


def captions(scene: Scene) -> list[str]:
    """Five captions of the same facts."""
    place, first = scene.background, scene.things[0]
    if scene.repeated:
        what = f"{NUMBERS[len(scene.things)]} {first.colour} {plural(first.kind)}"
        return [
            f"{what} {place}.".capitalize(),
            f"{what} in a row {place}.".capitalize(),
            f"There are {what} {place}.",
            f"A picture of {what} {place}.",
            f"{what} stand side by side {place}.".capitalize(),
        ]
    if len(scene.things) == 2:
        second = scene.things[1]
        one, two = f"a {first.colour} {first.kind}", f"a {second.colour} {second.kind}"
        return [
            f"{one} next to {two} {place}.".capitalize(),
            f"{one} and {two} {place}.".capitalize(),
            f"There is {one} next to {two} {place}.",
            f"A picture of {one} and {two} {place}.",
            f"{one} to the left of {two} {place}.".capitalize(),
        ]
    texture = "" if first.texture == "plain" else f"{first.texture} "
    what = f"a {first.size} {texture}{first.colour} {first.kind}"
    return [
        f"{what} {place}.".capitalize(),
        f"{what} alone {place}.".capitalize(),
        f"There is {what} {place}.",
        f"A picture of {what} {place}.",
        f"a {texture}{first.colour} {first.kind} {place}.".capitalize(),
    ]


def plural(kind: str) -> str:
    """cup -> cups, fish -> fish."""
    return kind if kind == "fish" else f"{kind}s"


def questions(scene: Scene, chooser: random.Random) -> list[tuple[str, str, str, str]]:
    """(question, answer, question type, answer type) in VQAv2's terms."""
    thing = chooser.choice(scene.things)
    absent = chooser.choice([kind for kind in KINDS if all(kind != t.kind for t in scene.things)])
    number = sum(t.kind == thing.kind for t in scene.things)
    asked = chooser.choice((thing.kind, absent))
    present = "yes" if asked == thing.kind else "no"
    return [
        (f"What color is the {thing.kind}?", thing.colour, "what color is the", "other"),
        (f"How many {plural(thing.kind)} are there?", str(number), "how many", "number"),
        (f"Is there a {asked}?", present, "is there a", "yes/no"),
    ]
