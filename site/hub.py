"""The published networks as one class that the Hugging Face Hub knows how to keep and to load."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

import manage

MODELS = Path(__file__).resolve().parent / "models"


def cells(notebook: str, *ids: str) -> dict:
    """The names that some cells of a notebook make, after what it imports."""
    code, scope = manage.code_cells(notebook), {}
    for key in ("imports", "data"):
        found = ast.parse(code[key]["source"] if key in code else "").body
        imports = [node for node in found if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), notebook, "exec"), scope)
    for key in ids:
        exec(code[key]["source"], scope)
    return scope


class DigitReader(nn.Module, PyTorchModelHubMixin):
    """A network in notebook 09's language, behind the normalisation of its pixels.

    Takes images ``[B, 1, 28, 28]`` in [0, 1], white on black, prepared as MNIST's are; returns
    logits ``[B, 10]``. ``DigitReader.from_pretrained(folder)`` loads one. Raises a ValueError if
    ``line`` describes no network.
    """

    def __init__(self, line: str, mean: float, std: float) -> None:
        super().__init__()
        self.network = cells("09_smallest_network", "convolution", "network")["network"](line)
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def read_picture(path: Path | str, model: nn.Module) -> tuple[int, float, str]:
    """The digit on a picture file, its probability, and what to doubt ("" if nothing).

    The file is opened and prepared by notebook 15. Raises a ValueError that says in one sentence
    why it cannot be read.
    """
    own = cells("15_your_own_digit", "to-mnist", "open", "shrink", "ink", "prepare")
    stages = own["prepare"](path)
    image = torch.from_numpy(np.array(stages["as in MNIST"], dtype=np.float32) / 255)
    with torch.no_grad():
        chances = model.eval()(image[None, None]).softmax(dim=1)[0]
    return int(chances.argmax()), float(chances.max()), stages["note"]
