"""Vehicles: car, truck, bus, train, airplane, boat, rocket, tractor. They drive (or point) along +x."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..parts import Blueprint, bar, box, carve, cone, cylinder, ellipsoid, hull, lathe, mirror_y, place, prism, sphere
from ..solid import Solid
from . import Noun
from ._shapes import ALONG_X, ALONG_Y, cabin, lights, pane, wheels


def car(rng: np.random.Generator) -> Blueprint:
    """A passenger car: sedan, hatchback or pickup."""
    b, style = Blueprint(), rng.integers(3)
    half, width = 0.5 * rng.uniform(3.1, 3.9), rng.uniform(1.6, 1.85)
    radius, waist, tall = rng.uniform(0.33, 0.4), rng.uniform(0.6, 0.74), rng.uniform(0.55, 0.75)
    low = 0.6 * radius
    top, y = low + waist, 0.5 * width
    b.add("body", "body", box((2 * half, width, waist), (0, 0, low + 0.5 * waist), bevel=0.13))
    ends = [(-0.68, 0.42), (-0.96, 0.4), (-0.3, 0.45)][style]
    rakes = [(0.4, 0.5), (0.22, 0.5), (0.1, 0.4)][style]
    shell, walls = cabin((ends[0] * half, ends[1] * half), (top - 0.05, top + tall), 0.94 * width, rakes, 0.16)
    b.add("cabin", "body", shell)
    b.add("windshield", "glass", pane(walls["front"], (0.14, 0.86), (0.2, 0.82)))
    b.add("rear window", "glass", pane(walls["back"], (0.3, 0.7), (0.4, 0.8)))
    spans = [(0.2, 0.84)] if style == 2 else [(0.12, 0.46), (0.56, 0.88)]
    b.add("side windows", "glass", *mirror_y(*[pane(walls["left"], s, (0.28, 0.84)) for s in spans]))
    if style == 2:
        rail = box((0.66 * half, 0.14, 0.22), (-0.64 * half, y - 0.09, top + 0.05))
        b.add("bed rails", "body", *mirror_y(rail), box((0.14, width - 0.1, 0.22), (-half + 0.12, 0, top + 0.05)))
    axle = rng.uniform(0.56, 0.62) * half
    for name, x in (("front", axle), ("back", -axle)):
        wheels(b, name, x, y - 0.06, radius, 0.28)
    b.add("grille", "dark", box((0.1, 0.34 * width, 0.3 * waist), (half, 0, low + 0.52 * waist)))
    b.add("front bumper", "body", box((0.16, 0.9 * width, 0.13), (half, 0, low + 0.08)))
    b.add("rear bumper", "trim", box((0.14, 0.86 * width, 0.14), (-half, 0, low + 0.09)))
    lights(b, half, -half, 0.35 * width, low + 0.58 * waist, rng.uniform(0.15, 0.18))
    if rng.random() < 0.35:
        middle = 0.5 * (ends[0] + ends[1]) * half
        b.add("roof rack", "trim", box((0.3 * half, 0.5 * width, 0.12), (middle, 0, top + tall + 0.05)))
    b.point("hood", (0.8 * half, 0, top))
    b.point("trunk end", (-half - 0.05, 0, low + 0.6 * waist))
    b.point("windshield", walls["front"].mean(0))
    return b


def truck(rng: np.random.Generator) -> Blueprint:
    """A lorry: upright cab and a box body, a dump bed or a tank."""
    b, style = Blueprint(), rng.integers(3)
    load, width, radius = rng.uniform(2.1, 2.9), rng.uniform(1.45, 1.7), rng.uniform(0.36, 0.44)
    cab, tall, high = rng.uniform(0.95, 1.15), rng.uniform(1.3, 1.55), rng.uniform(1.3, 1.75)
    low, y = radius * 1.1, 0.5 * width
    back, gap = -load, 0.2
    b.add("chassis", "dark", box((load + gap + cab, 0.7 * width, 0.22), (0.5 * (gap + cab - load), 0, low)))
    x1 = gap + cab
    shell, walls = cabin((gap, x1), (low - 0.15, low + tall), width, (0.0, 0.22), 0.08)
    b.add("cab", "body", shell)
    b.add("windshield", "glass", pane(walls["front"], (0.12, 0.88), (0.56, 0.86)))
    b.add("side windows", "glass", *mirror_y(pane(walls["left"], (0.3, 0.84), (0.55, 0.88))))
    bed = low + 0.1
    if style == 0:
        size = (load, width * 1.08, high + 0.15)
        b.add("cargo box", "body", box(size, (back + 0.5 * load, 0, bed + 0.5 * size[2]), bevel=0.06))
        b.add("box rails", "body", *mirror_y(box((load, 0.08, 0.16), (0.5 * back, 0.54 * width, bed + 0.1))))
    elif style == 1:
        top = bed + 0.62 * high
        tub = [(-load, bed + 0.1), (-0.05, bed), (0.05, top), (-load - 0.2, top + 0.05)]
        inner = box((load - 0.15, width - 0.12, 0.5), (0.5 * back - 0.05, 0, top + 0.05))
        b.add("dump bed", "body", carve(prism(tub, 1.08 * width, rotate=ALONG_Y), inner))
        b.add("load", "wood", ellipsoid((0.42 * load, 0.42 * width, 0.36), (0.5 * back, 0, top - 0.22)))
        rib = (0.1, 1.14 * width, top - bed - 0.1)
        b.add("bed ribs", "trim", *[box(rib, (s * back, 0, 0.5 * (top + bed) + 0.05)) for s in (0.25, 0.75)])
    else:
        r = 0.46 * width
        tank = [(0, 0), (0.8 * r, 0), (r, 0.15), (r, load - 0.15), (0.8 * r, load), (0, load)]
        b.add("tank", "body", lathe(tank, (back, 0, bed + r), ALONG_X))
        rings = [cylinder(1.04 * r, 0.13, (s * back, 0, bed + r), ALONG_X) for s in (0.3, 0.7)]
        b.add("tank rings", "trim", *rings)
    for name, x in (("front", gap + 0.5 * cab), ("middle", 0.55 * back), ("back", back + radius + 0.05)):
        wheels(b, name, x, y - 0.1, radius, 0.3)
    b.add("grille", "dark", box((0.12, 0.42 * width, 0.2 * tall), (x1, 0, low + 0.16 * tall)))
    b.add("bumper", "body", box((0.2, 1.02 * width, 0.18), (x1 + 0.02, 0, low - 0.12)))
    lights(b, x1, back, 0.37 * width, low + 0.16 * tall, 0.15)
    b.point("windshield", walls["front"][:2].mean(0) * 0.3 + walls["front"][2:].mean(0) * 0.7 + (0.04, 0, 0))
    b.point("cab roof", (gap + 0.4 * cab, 0, low + tall))
    b.point("grille", (x1 + 0.06, 0, low + 0.16 * tall))
    return b


def bus(rng: np.random.Generator) -> Blueprint:
    """A city bus with one or two decks."""
    b, decks = Blueprint(), 1 + int(rng.random() < 0.4)
    half, width = 0.5 * (rng.uniform(3.7, 4.8) - 0.7 * (decks - 1)), rng.uniform(1.45, 1.65)
    storey, radius = rng.uniform(1.35, 1.55) - 0.22 * (decks - 1), rng.uniform(0.32, 0.4)
    low, y = 0.7 * radius, 0.5 * width
    tall = decks * storey + 0.15
    top = low + tall
    b.add("body", "body", box((2 * half, width, tall), (0, 0, low + 0.5 * tall), bevel=0.14))
    b.add("roof", "body", box((1.7 * half, 0.6 * width, 0.12), (-0.05 * half, 0, top + 0.02), bevel=0.04))
    hatches = [box((0.36, 0.36, 0.1), (s * half, 0, top + 0.1)) for s in (-0.55, 0.15)]
    b.add("roof hatches", "trim", *hatches)
    count, panes = int(rng.integers(4, 7)), []
    pitch = 1.62 * half / count
    for deck in range(decks):
        z = low + (deck + 0.66) * storey
        for i in range(count):
            x = -0.86 * half + (i + 0.5) * pitch
            panes.append(box((0.7 * pitch, width + 0.07, 0.34 * storey), (x, 0, z)))
    b.add("windows", "glass", *panes)
    for deck in range(decks):
        z = low + (deck + 0.66) * storey
        b.add(f"windshield {deck + 1}", "glass", box((0.1, 0.78 * width, 0.4 * storey), (half, 0, z)))
    b.add("destination sign", "dark", box((0.16, 0.62 * width, 0.17), (half, 0, top - 0.14)))
    b.add("sign text", "lamp", box((0.2, 0.42 * width, 0.08), (half, 0, top - 0.14)))
    b.add("door", "dark", box((0.2 * half, 0.08, 0.62 * storey), (0.87 * half, -y, low + 0.4 * storey)))
    for name, x in (("front", 0.56 * half), ("back", -0.58 * half)):
        wheels(b, name, x, y - 0.07, radius, 0.26)
    b.add("front bumper", "body", box((0.18, 0.94 * width, 0.15), (half, 0, low + 0.09)))
    b.add("rear bumper", "body", box((0.14, 0.94 * width, 0.15), (-half, 0, low + 0.09)))
    lights(b, half, -half, 0.33 * width, low + 0.27 * storey, 0.15)
    mirror = box((0.14, 0.14, 0.28), (half + 0.1, y + 0.07, low + (decks - 0.4) * storey))
    b.add("mirrors", "dark", *mirror_y(mirror))
    b.point("windshield", (half + 0.05, 0, low + 0.64 * storey))
    b.point("door", (0.87 * half, -y - 0.04, low + 0.4 * storey))
    b.point("roof back", (-0.8 * half, 0, top + 0.08))
    b.point("roof front", (0.7 * half, 0, top + 0.08))
    return b


def train(rng: np.random.Generator) -> Blueprint:
    """A steam locomotive."""
    b = Blueprint()
    boiler, length, cab = rng.uniform(0.44, 0.56), rng.uniform(1.7, 2.3), rng.uniform(0.85, 1.15)
    count = int(rng.integers(2, 4))
    radius = rng.uniform(0.34, 0.4) if count == 3 else rng.uniform(0.4, 0.48)
    deck, width = 2 * radius - 0.16, rng.uniform(1.2, 1.4)
    z, front = deck + 0.08 + boiler, length
    b.add("running board", "trim", box((length + cab + 0.1, width, 0.12), (0.5 * (length - cab), 0, deck)))
    b.add("frame", "dark", box((length + cab - 0.1, 0.5 * width, 0.4), (0.5 * (length - cab), 0, deck - 0.25)))
    b.add("boiler", "body", cylinder(boiler, length, (0.5 * length, 0, z), ALONG_X, 32))
    bands = [cylinder(boiler * 1.05, 0.12, (s * length, 0, z), ALONG_X, 32) for s in (0.3, 0.62)]
    b.add("boiler bands", "trim", *bands)
    b.add("smokebox door", "dark", cylinder(boiler * 0.74, 0.16, (front + 0.02, 0, z), ALONG_X, 32))
    b.add("front plate", "light", cylinder(boiler * 0.62, 0.2, (front + 0.04, 0, z), ALONG_X, 28))
    eyes = mirror_y(cylinder(0.15 * boiler, 0.26, (front + 0.05, 0.24 * boiler, z + 0.1), ALONG_X, 16))
    b.add("front bolts", "dark", *eyes, box((0.26, 0.5 * boiler, 0.1), (front + 0.05, 0, z - 0.24 * boiler)))
    roof = z + boiler + rng.uniform(0.25, 0.45)
    b.add("cab", "body", box((cab, width, roof - deck), (-0.5 * cab, 0, 0.5 * (roof + deck)), bevel=0.05))
    b.add("cab roof", "body", box((cab + 0.26, width + 0.22, 0.16), (-0.5 * cab, 0, roof), bevel=0.05))
    pane = (0.52 * cab, width + 0.06, 0.34 * (roof - deck))
    b.add("cab windows", "glass", box(pane, (-0.5 * cab, 0, deck + 0.7 * (roof - deck))))
    stack, flare = rng.uniform(0.5, 0.75), rng.uniform(1.0, 2.0)
    x, r = 0.82 * length, 0.17
    peak = z + 0.9 * boiler + stack
    b.add("chimney", "body", cone(r, stack, (x, 0, peak - stack), top=r * flare))
    b.add("chimney rim", "dark", cylinder(r * flare + 0.05, 0.15, (x, 0, peak)))
    spots = (0.46,) if rng.random() < 0.5 else (0.22, 0.54)
    domes = [ellipsoid((0.22, 0.22, 0.3), (s * length, 0, z + boiler), detail=2) for s in spots]
    b.add("domes", "accent" if len(spots) == 1 else "trim", *domes)
    reach = length + cab - 2 * radius
    for i in range(count):
        name = ("back", "middle", "front")[i if count == 3 else 2 * i]
        wheels(b, name, -cab + radius + 0.02 + reach * i / (count - 1), 0.5 * width - 0.1, radius, 0.22, "body", 0.66)
    rod = box((reach + 0.2, 0.1, 0.13), (0.5 * (length - cab), 0.5 * width + 0.06, radius))
    b.add("connecting rods", "metal", *mirror_y(rod))
    w, f = 0.5 * width, front + 0.05
    feet = [(f + 0.5, s * 0.1, 0.04) for s in (-1, 1)] + [(f - 0.05, s * w, h) for s in (-1, 1) for h in (0.04, deck)]
    b.add("cowcatcher", "body", hull(np.array([*feet, (f + 0.12, -0.5 * w, deck), (f + 0.12, 0.5 * w, deck)])))
    b.add("headlight", "lamp", cylinder(0.17, 0.3, (front - 0.02, 0, z + boiler + 0.1), ALONG_X, 20))
    b.point("chimney top", (x, 0, peak + 0.06))
    b.point("headlight", (front + 0.13, 0, z + boiler + 0.1))
    b.point("cab roof", (-0.5 * cab, 0, roof + 0.08))
    b.point("cowcatcher tip", (f + 0.5, 0, 0.06))
    b.point("cab back", (-cab, 0, 0.5 * (roof + deck)))
    return b


def airplane(rng: np.random.Generator) -> Blueprint:
    """A propeller plane or a jet liner."""
    b, jet = Blueprint(), bool(rng.random() < 0.5)
    half, r = 0.5 * rng.uniform(3.0, 3.7), rng.uniform(0.38, 0.5)
    span, chord, sweep = rng.uniform(1.5, 1.9), rng.uniform(0.7, 0.95), rng.uniform(0.5, 0.8) if jet else 0.05
    marks = [(0, -1), (0.18, -1), (0.62, -0.45), (1, -0.05), (1, 0.5), (0.88, 0.72), (0.62, 0.9), (0.3, 0.98), (0, 1)]
    b.add("fuselage", "body", lathe([(p * r, q * half) for p, q in marks], rotate=ALONG_X))

    def wing(root: float, size: float, tip: float, reach: float, lag: float, at: Sequence[float]) -> Solid:
        right = [(root, 0), (root - lag, -reach), (root - lag - tip, -reach), (root - size, 0)]
        return prism([*right, (root - lag - tip, reach), (root - lag, reach)], 0.15, at)

    height = -0.3 * r if jet or rng.random() < 0.5 else 0.95 * r
    root = 0.22 * half + 0.5 * chord
    b.add("wings", "body", wing(root, chord * 1.15, chord * 0.62, span, sweep, (0, 0, height)))
    tail, lift = rng.uniform(0.36, 0.44) * span, rng.uniform(0.75, 1.05)
    b.add("tailplane", "body", wing(-0.68 * half, 0.5, 0.32, tail, 0.4 * sweep, (0, 0, 0.05)))
    fin = [(-0.55 * half, 0), (-0.85 * half, lift), (-1.06 * half, lift), (-0.98 * half, 0)]
    b.add("fin", "body", prism(fin, 0.16, (0, 0, 0.1), ALONG_Y))
    tips = mirror_y(box((chord * 0.66, 0.22, 0.19), (root - sweep - 0.31 * chord, span - 0.08, height)))
    b.add("wing tips", "trim", *tips)
    if jet:
        b.add("cockpit", "dark", ellipsoid((0.3, 0.72 * r, 0.24), (0.76 * half, 0, 0.52 * r), (0, 22, 0), 2))
        x, y = root - 0.45 * sweep + 0.1, 0.45 * span
        b.add("engines", "body", *mirror_y(cylinder(0.23, 0.7, (x, y, height - 0.25), ALONG_X, 22)))
        b.add("intakes", "light", *mirror_y(cylinder(0.2, 0.1, (x + 0.34, y, height - 0.25), ALONG_X, 20)))
        b.add("fans", "dark", *mirror_y(cylinder(0.12, 0.14, (x + 0.35, y, height - 0.25), ALONG_X, 16)))
        b.add("nose cone", "light", ellipsoid((0.22, 0.34 * r + 0.06, 0.34 * r + 0.06), (0.95 * half, 0, 0), detail=2))
    else:
        b.add("cockpit", "glass", ellipsoid((0.42, 0.62 * r, 0.42), (0.42 * half, 0, 0.82 * r), detail=2))
        blades, turn, reach = int(rng.integers(2, 5)), rng.uniform(0, 90), rng.uniform(0.5, 0.62)
        blade, hub = box((0.09, 0.17, reach), (0, 0, 0.5 * reach + 0.06)), (half + 0.04, 0, 0)
        b.add("propeller", "dark", *[place(blade, hub, (turn + 360 * k / blades, 0, 0)) for k in range(blades)])
        b.add("spinner", "light", cone(0.2, 0.34, (half - 0.06, 0, 0), ALONG_X, 0.06))
        legs = [bar((0.3 * half, 0.15, -0.7 * r), (0.36 * half, 0.5, -r - 0.3), 0.07)]
        b.add("wheel legs", "body", *mirror_y(*legs))
        b.add("wheels", "dark", *mirror_y(cylinder(0.17, 0.14, (0.36 * half, 0.5, -r - 0.3), ALONG_Y, 20)))
    count = int(rng.integers(3, 6)) if jet else 2
    spots = np.linspace(0.45, -0.4, count) * half if jet else np.array([0.05, -0.16]) * half
    b.add("windows", "glass", *[cylinder(0.09, 1.94 * r, (x, 0, 0.3 * r), ALONG_Y, 14) for x in spots])
    b.point("nose", (half + (0.0 if jet else 0.28), 0, 0))
    for side, sign in (("left", 1), ("right", -1)):
        b.point(f"{side} wing tip", (root - sweep - 0.31 * chord, sign * (span + 0.03), height))
        b.point(f"{side} tail tip", (-0.68 * half - 0.4 * sweep - 0.16, sign * tail, 0.05))
    b.point("fin top", (-0.95 * half, 0, lift + 0.1))
    b.point("tail end", (-half, 0, 0))
    b.point("belly", (0.1 * half, 0, min(-r, height - 0.08)))
    return b


def boat(rng: np.random.Generator) -> Blueprint:
    """A tug boat with a wheelhouse and a funnel, or a sailing boat."""
    b, sails = Blueprint(), bool(rng.random() < 0.5)
    half, w, deep = 0.5 * rng.uniform(2.9, 3.6), 0.5 * rng.uniform(1.3, 1.6), rng.uniform(0.6, 0.8)
    outline = np.array([(-1, -0.75), (-0.3, -1), (0.2, -0.95), (0.62, -0.62), (1, 0)]) * (half, w)
    outline = np.concatenate([outline, outline[-2::-1] * (1, -1)])
    lower = outline * (0.8, 0.55) - (0.08 * half, 0)
    shell = hull(np.array([(*p, deep) for p in outline] + [(*p, 0) for p in lower]))
    b.add("hull", "body", carve(shell, prism(outline * (0.86, 0.82), 0.36, (0, 0, deep))))
    rim = carve(prism(outline * 1.03, 0.13, (0, 0, deep)), prism(outline * (0.86, 0.82), 0.5, (0, 0, deep)))
    b.add("rim", "body", rim)
    b.add("water line", "trim", prism(outline * 0.93, 0.1, (-0.02 * half, 0, 0.6 * deep)))
    b.add("deck", "wood", prism(outline * (0.89, 0.86), 0.1, (0, 0, deep - 0.16)))
    eyes = [sphere(0.2, (0.7 * half, 0.38 * w, 0.64 * deep), 2)]
    b.add("bow eyes", "light", *mirror_y(*eyes))
    b.add("bow pupils", "dark", *mirror_y(sphere(0.13, (0.7 * half + 0.1, 0.38 * w + 0.05, 0.64 * deep), 2)))
    b.point("bow", (1.02 * half, 0, deep))
    b.point("stern", (-1.02 * half, 0, deep))
    for side, sign in (("left", 1), ("right", -1)):
        b.point(f"{side} gunwale", (-0.3 * half, sign * 1.03 * w, deep))
        b.point(f"{side} stern corner", (-half, sign * 0.75 * w, deep))
    (_sails if sails else _wheelhouse)(b, rng, half, w, deep)
    return b


def _wheelhouse(b: Blueprint, rng: np.random.Generator, half: float, w: float, deep: float) -> None:
    """The superstructure of a tug on the deck of a boat of half length, half width and depth."""
    tall, x1, x0 = rng.uniform(0.8, 1.1), rng.uniform(0.28, 0.4) * half, rng.uniform(-0.4, -0.2) * half
    shell, walls = cabin((x0, x1), (deep - 0.15, deep + tall), 1.16 * w, (0.0, 0.12), 0.05)
    b.add("wheelhouse", "body", shell)
    b.add("front windows", "glass", *[pane(walls["front"], s, (0.52, 0.86)) for s in ((0.1, 0.46), (0.54, 0.9))])
    b.add("side windows", "glass", *mirror_y(pane(walls["left"], (0.2, 0.8), (0.54, 0.84))))
    roof = deep + tall
    b.add("roof", "body", box((x1 - x0 + 0.2, 1.36 * w, 0.13), (0.5 * (x0 + x1) - 0.03, 0, roof), bevel=0.04))
    x, r, peak = -0.62 * half, rng.uniform(0.2, 0.27), deep + rng.uniform(0.95, 1.3)
    b.add("funnel", "body", cylinder(r, peak - deep + 0.2, (x, 0, 0.5 * (peak + deep) - 0.1)))
    b.add("funnel band", "light", cylinder(1.06 * r, 0.18, (x, 0, peak - 0.25)))
    b.add("funnel top", "dark", cylinder(1.06 * r, 0.16, (x, 0, peak)))
    b.add("searchlight", "lamp", cylinder(0.14, 0.26, (x1 - 0.14, 0, roof + 0.16), ALONG_X, 18))
    b.point("funnel top", (x, 0, peak + 0.08))
    b.point("roof", (0.5 * (x0 + x1) - 0.2, 0, roof + 0.065))


def _sails(b: Blueprint, rng: np.random.Generator, half: float, w: float, deep: float) -> None:
    """Mast, main sail and jib on a boat of half length, half width and depth."""
    tall, x, turn = rng.uniform(2.1, 2.7), rng.uniform(0.0, 0.12) * half, rng.uniform(14, 26)
    boom = rng.uniform(0.8, 0.95) * half
    b.add("mast", "wood", bar((x, 0, deep - 0.2), (x, 0, deep + tall), 0.085, 0.065))
    main = [(-0.05, 0.35), (-boom, 0.4), (-0.6 * boom, 0.45 * tall), (-0.05, tall - 0.05)]
    b.add("main sail", "body", prism(main, 0.08, (x, 0, deep), (90, 0, -turn)))
    b.add("boom", "wood", place(bar((0, 0, 0.33), (-boom, 0, 0.38), 0.07), (x, 0, deep), (0, 0, -turn)))
    jib = [(0.1, 0.3), (0.8 * half, 0.16), (0.1, 0.8 * tall)]
    b.add("jib", "body", prism(jib, 0.08, (x, 0, deep), (90, 0, 10)))
    b.add("mast ball", "accent", sphere(0.11, (x, 0, deep + tall), 2))
    b.add("cuddy", "body", box((0.5 * half, 0.9 * w, 0.42), (0.3 * half, 0, deep), bevel=0.08))
    b.add("cuddy window", "glass", box((0.06, 0.6 * w, 0.14), (0.55 * half, 0, deep + 0.1)))
    b.point("mast top", (x, 0, deep + tall + 0.11))
    b.point("boom end", (x - boom * np.cos(np.deg2rad(turn)), boom * np.sin(np.deg2rad(turn)), deep + 0.38))


def rocket(rng: np.random.Generator) -> Blueprint:
    """A toy space rocket standing on its fins, with a hatch and a porthole in front."""
    b, fins = Blueprint(), int(rng.integers(3, 5))
    r, tall, low = rng.uniform(0.5, 0.66), rng.uniform(2.5, 3.2), rng.uniform(0.35, 0.5)
    waist, power = rng.uniform(0.3, 0.42), rng.uniform(1.7, 2.6)

    def radius(t: float) -> float:
        return r * (1 - 0.35 * (1 - t / waist) ** 2 if t < waist else 1 - ((t - waist) / (1 - waist)) ** power)

    split = rng.uniform(0.78, 0.83)
    lower = [(radius(t), low + t * tall) for t in np.linspace(0, split, 14)]
    b.add("fuselage", "body", lathe([(0, low), *lower, (0, low + split * tall)]))
    upper = [(radius(t) * 1.03, low + t * tall) for t in np.linspace(split, 0.985, 8)]
    b.add("nose cone", "trim", lathe([(0, low + split * tall), *upper, (0, low + tall)]))
    b.add("tip", "metal", sphere(0.1, (0, 0, low + tall - 0.02), 2))
    b.add("nozzle", "dark", cone(0.62 * r, 0.3, (0, 0, low - 0.22), top=0.4 * r))
    out, rise = rng.uniform(0.5, 0.75), rng.uniform(0.32, 0.42) * tall
    fin = [(0.5 * r, low + 0.1), (r + out, 0), (r + 1.05 * out, 0.34 * rise), (0.9 * r, low + rise)]
    fin.append((0.5 * r, low + rise))
    turns = [45 + 90 * k for k in range(4)] if fins == 4 else [60, 180, 300]
    b.add("fins", "body", *[prism(fin, 0.17, rotate=(90, 0, turn)) for turn in turns])
    for i, turn in enumerate(turns):
        c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        b.point(f"fin {i + 1} foot", ((r + out) * c, (r + out) * s, 0.02))
    eye, size = rng.uniform(0.56, 0.62), rng.uniform(0.5, 0.6) * r
    z, x = low + eye * tall, radius(eye)
    b.add("porthole ring", "light", cylinder(size, 0.5 * r, (x - 0.25 * r + 0.07, 0, z), ALONG_X))
    b.add("porthole", "dark", cylinder(0.7 * size, 0.5 * r, (x - 0.25 * r + 0.11, 0, z), ALONG_X))
    glint = cylinder(0.24 * size, 0.5 * r, (x - 0.25 * r + 0.14, 0.26 * size, z + 0.26 * size), ALONG_X, 14)
    b.add("porthole glint", "glass", glint)
    door, x = low + 0.2 * tall, radius(0.22)
    b.add("hatch frame", "light", box((0.5 * r, 0.8 * r, 0.27 * tall), (x - 0.25 * r + 0.06, 0, door), bevel=0.06))
    b.add("hatch", "trim", box((0.5 * r, 0.58 * r, 0.21 * tall), (x - 0.25 * r + 0.1, 0, door), bevel=0.06))
    ring = cylinder(1.03 * radius(0.4), 0.13, (0, 0, low + 0.4 * tall), sides=32)
    b.add("belt", "trim", ring)
    b.point("tip", (0, 0, low + tall + 0.08))
    b.point("porthole", (radius(eye) + 0.11, 0, z))
    b.point("hatch", (radius(0.22) + 0.1, 0, door))
    b.point("back", (-1.03 * radius(0.4), 0, low + 0.4 * tall))
    return b


def tractor(rng: np.random.Generator) -> Blueprint:
    """A farm tractor with big rear wheels, with a closed cab or an open seat."""
    b, closed = Blueprint(), bool(rng.random() < 0.6)
    big, small = rng.uniform(0.72, 0.85), rng.uniform(0.4, 0.48)
    hood, width, nose = rng.uniform(1.25, 1.6), rng.uniform(0.8, 0.95), rng.uniform(0.62, 0.78)
    low, x1 = small * 0.95, rng.uniform(1.35, 1.6)
    top = low + nose
    b.add("hood", "body", box((hood, width, nose), (x1 - 0.5 * hood, 0, low + 0.5 * nose), bevel=0.1))
    seat = 1.35 * big
    b.add("rear body", "body", box((1.2, 1.1 * width, seat - 0.3), (-0.1, 0, 0.3 + 0.5 * (seat - 0.3)), bevel=0.06))
    y = 0.55 * width + 0.2
    wheels(b, "back", -0.15, y, big, 0.34, "body", 0.72)
    wheels(b, "front", x1 - 0.42, 0.5 * width + 0.12, small, 0.24, "body", 0.66)
    angles = np.deg2rad(np.linspace(10, 165, 12))
    curve = np.stack([np.cos(angles), np.sin(angles)], 1)
    ring = np.concatenate([(big + 0.2) * curve, (big + 0.06) * curve[::-1]])
    fender = prism(ring, 0.5, (-0.15, y - 0.01, big), ALONG_Y)
    b.add("fenders", "body", *mirror_y(fender))
    peak = seat + rng.uniform(0.85, 1.05)
    if closed:
        shell, walls = cabin((-0.68, 0.45), (seat - 0.1, peak), 1.2 * width, (0.1, 0.16), 0.06)
        b.add("cab", "body", shell)
        b.add("windshield", "glass", pane(walls["front"], (0.17, 0.83), (0.3, 0.84)))
        b.add("side windows", "glass", *mirror_y(pane(walls["left"], (0.24, 0.8), (0.36, 0.82))))
        b.add("cab roof", "body", box((1.2, 1.34 * width, 0.16), (-0.1, 0, peak), bevel=0.05))
    else:
        b.add("seat", "body", box((0.5, 0.8 * width, 0.16), (-0.3, 0, seat + 0.05), bevel=0.05))
        b.add("backrest", "body", box((0.18, 0.8 * width, 0.62), (-0.6, 0, seat + 0.3), (0, -10, 0), bevel=0.05))
        b.add("steering column", "dark", bar((0.5, 0, seat - 0.25), (0.2, 0, seat + 0.3), 0.07))
        b.add("steering wheel", "dark", cylinder(0.27, 0.09, (0.2, 0, seat + 0.3), (0, -30, 0), 20))
        peak = seat + 0.6
    x = x1 - 0.55 * hood
    pipe = top + rng.uniform(0.5, 0.75)
    b.add("exhaust", "dark", bar((x, -0.22, top - 0.1), (x, -0.22, pipe), 0.1))
    size, z, y = (0.1, 0.12 * width, 0.62 * nose), low + 0.72 * nose, 0.36 * width
    b.add("grille", "dark", *[box(size, (x1, s * width, low + 0.46 * nose)) for s in (-0.16, 0, 0.16)])
    b.add("headlights", "lamp", *mirror_y(cylinder(0.14, 0.14, (x1 + 0.02, y, z), ALONG_X, 18)))
    b.add("axle", "trim", box((0.26, width + 0.2, 0.2), (x1 - 0.42, 0, small)))
    b.add("tail lights", "signal", *mirror_y(box((0.1, 0.14, 0.14), (-0.7, 0.42 * width, 0.9 * seat))))
    b.point("grille", (x1 + 0.05, 0, low + 0.46 * nose))
    b.point("exhaust top", (x, -0.22, pipe))
    b.point("hood top", (x1 - 0.2, 0, top))
    b.point("left headlight", (x1 + 0.09, y, z))
    b.point("right headlight", (x1 + 0.09, -y, z))
    b.point("rear hitch", (-0.7, 0, 0.5 * seat))
    return b


NOUNS: dict[str, Noun] = {
    "car": Noun(car, ("car", "automobile"), (1.3, 1.7), "vehicle"),
    "truck": Noun(truck, ("truck", "lorry"), (2.5, 3.4), "vehicle"),
    "bus": Noun(bus, ("bus", "coach"), (2.8, 3.8), "vehicle"),
    "train": Noun(train, ("train", "locomotive"), (3.2, 4.2), "vehicle"),
    "airplane": Noun(airplane, ("airplane", "plane", "aeroplane"), (2.6, 5.0), "vehicle", floor=False),
    "boat": Noun(boat, ("boat", "ship"), (2.2, 4.5), "vehicle"),
    "rocket": Noun(rocket, ("rocket", "spaceship"), (6.0, 15.0), "vehicle"),
    "tractor": Noun(tractor, ("tractor",), (2.2, 3.0), "vehicle"),
}
