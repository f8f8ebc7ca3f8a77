"""Train the smallest network once more and keep its weights: ``python site/smallest.py``.

Notebook 09 keeps the records of its runs, not their weights. This is one run more, by that
notebook's own cells, with a seed that was fixed beforehand; it belongs to no average there.
Minutes on one thread of a CPU.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import torch

import manage
import parameters
import records

NAME, SEED, STUDY = "mixed_2922", 0, "networks"
CELLS = ("parameters", "data", "convolution", "network", "specs", "networks")
CELLS += ("recipes", "rounded", "train")


def main() -> None:
    """Train, and save record and weights under ``notebooks/results/networks/``."""
    torch.set_num_threads(1)
    cells, scope = manage.code_cells("09_smallest_network"), {"parameters": parameters}
    for cell in CELLS:
        exec(cells[cell]["source"], scope)
    print(records.save_record(*scope["train"](NAME, SEED, scope["RECIPES"][NAME], STUDY)))


if __name__ == "__main__":
    main()
