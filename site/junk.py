"""What is no digit: printed letters and scribbles, prepared as MNIST's digits were.

Junk to choose a threshold with, and other junk (other fonts, other draws) to say how often it errs.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import CubicSpline

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LETTERS = "ACEFHKMNPRTUVWXYacdefhkmnprtuvwxy"  # without those that some hand writes like a digit
SIDE = 280  # pixels of a drawing, before it becomes 28 x 28
ToMnist = Callable[[np.ndarray], torch.Tensor]


def letters(fonts: str, to_mnist: ToMnist) -> torch.Tensor:
    """Each of ``LETTERS`` in each font whose file matches: uint8 ``[N, 28, 28]``."""
    images = []
    for path in sorted(p for p in FONTS.glob(fonts) if "Display" not in p.name):
        font = ImageFont.truetype(str(path), 180)
        for letter in LETTERS:
            picture = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(picture).text((140, 140), letter, fill=255, font=font, anchor="mm")
            images.append(to_mnist(np.asarray(picture) > 127))
    return torch.stack(images)


def scribbles(count: int, seed: int, to_mnist: ToMnist) -> torch.Tensor:
    """Smooth curves through 4 to 14 random points, in one to three strokes: ``[N, 28, 28]``."""
    random, images = np.random.default_rng(seed), []
    for _ in range(count):
        picture, pen = Image.new("L", (SIDE, SIDE)), random.uniform(9, 13)
        brush = ImageDraw.Draw(picture)
        for _ in range(random.integers(1, 4)):
            points = random.uniform(40, 240, (random.integers(4, 15), 2))
            times = np.arange(len(points))
            for x, y in CubicSpline(times, points)(np.linspace(0, times[-1], 60 * len(points))):
                brush.ellipse((x - pen, y - pen, x + pen, y + pen), fill=255)
        images.append(to_mnist(np.asarray(picture) > 0))
    return torch.stack(images)
