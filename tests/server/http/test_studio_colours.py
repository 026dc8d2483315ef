"""The twelve colours of experts: apart for every kind of sight, in both themes, and from the base's grey."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

COLOURS = Path(__file__).parents[3] / "server" / "studio" / "colours.css"

# Machado, Oliveira and Fernandes 2009, full severity, on linear sRGB.
SIGHTS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def colours(theme: int) -> dict[str, np.ndarray]:
    """Linear sRGB of what the style sheet has, by name."""
    found = re.findall(r"--(e\d+|base): light-dark\((#\w{6}), (#\w{6})\)", COLOURS.read_text())
    shares = {each[0]: np.array([int(each[1 + theme][i : i + 2], 16) / 255 for i in (1, 3, 5)]) for each in found}
    return {name: np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for name, c in shares.items()}


def oklab(linear: np.ndarray) -> np.ndarray:
    return TO_OKLAB @ np.cbrt(TO_CONES @ np.clip(linear, 0, 1))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHTS)
def test_any_two_are_apart(theme: int, sight: str) -> None:
    seen = {name: oklab(np.array(SIGHTS[sight]) @ colour) for name, colour in colours(theme).items()}
    assert len(seen) == 13
    near = {(a, b): float(np.linalg.norm(seen[a] - seen[b])) for a, b in combinations(seen, 2)}
    # 0.02 is about what can just be told from each other side by side.
    assert min(near.values()) > 0.09, min(near, key=near.__getitem__)
