"""Files are written whole or not at all; Python's own library is enough for that."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

HOUR = 3_600  # seconds


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in its place whole: who is killed leaves nothing that is trusted later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        temporary = Path(folder) / path.name
        temporary.write_bytes(content)
        temporary.replace(path)


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder, once it is too old to be still in use."""
    for left in folder.glob(".new-*"):
        with contextlib.suppress(OSError):  # another run may sweep at the same time
            if time.time() - left.stat().st_mtime > HOUR:
                shutil.rmtree(left)
