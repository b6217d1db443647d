"""Colours: safe for the colour-blind, each legible on its own ground, light or dark.

Charts name colours `var(--name)`. On the page the style sheet gives them a value for either scheme;
files, which are always light, have the values put in by `fixed`.
"""

import re
from collections.abc import Mapping

# Okabe and Ito's palette without its yellow, which white paper swallows; black is the ink.
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# The dark scheme lifts the two that would sink.
OKABE_ITO_LIFTED = ("#3d9ad6", "#e8712a", "#17b98c", "#d88fb8", "#e69f00", "#7cc7f0")

# Viridis's way from violet over teal to yellow, its light end darkened for white paper, its dark
# end lifted for a dark one.
RAMP_ON_LIGHT = ("#440154", "#453781", "#2f6690", "#1f8a8c", "#22996b", "#66a02a", "#b09500")
RAMP_ON_DARK = ("#9d72d6", "#7f86dc", "#5aa3d6", "#45bcc0", "#5ecf98", "#a5dc5c", "#fde725")
RAMP_STEPS = 21


def _mixed(one: str, other: str, share: float) -> str:
    pairs = ((int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _ramp(anchors: tuple[str, ...]) -> list[str]:
    colours = []
    for step in range(RAMP_STEPS):
        place = step / (RAMP_STEPS - 1) * (len(anchors) - 1)
        left = min(int(place), len(anchors) - 2)
        colours.append(_mixed(anchors[left], anchors[left + 1], place - left))
    return colours


def _scheme(
    ink: str, paper: str, nominal: tuple[str, ...], ramp: tuple[str, ...]
) -> dict[str, str]:
    return {
        "ink": ink,
        "paper": paper,
        # Mixed rather than translucent: drawing a translucent label costs a picture of its own.
        "label": _mixed(paper, ink, 0.82),
        "rule": _mixed(paper, ink, 0.65),
        "domain": _mixed(paper, ink, 0.5),
        "grid": _mixed(paper, ink, 0.1),
        **{f"series-{i}": colour for i, colour in enumerate((*nominal, ink))},
        **{f"ramp-{i}": colour for i, colour in enumerate(_ramp(ramp))},
    }


LIGHT: Mapping[str, str] = _scheme("#1c1e22", "#ffffff", OKABE_ITO, RAMP_ON_LIGHT)
DARK: Mapping[str, str] = _scheme("#e7e5df", "#15171b", OKABE_ITO_LIFTED, RAMP_ON_DARK)
NOMINAL = len(OKABE_ITO) + 1

INK = "var(--ink)"
PAPER = "var(--paper)"


def colours(count: int, ordered: bool) -> list[str]:
    """The colours of `count` series: a ramp if they are ordered, else the nominal ones in turn."""
    if not ordered:
        return [f"var(--series-{i % NOMINAL})" for i in range(count)]
    last = max(count - 1, 1)
    return [f"var(--ramp-{round(i * (RAMP_STEPS - 1) / last)})" for i in range(count)]


def fixed(text: str) -> str:
    """The text with every colour's name replaced by its value in the light scheme."""
    return re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: LIGHT.get(match[1], match[0]), text)


def css(scheme: Mapping[str, str]) -> str:
    """A scheme's colours as CSS custom properties."""
    return " ".join(f"--{name}: {value};" for name, value in scheme.items())
