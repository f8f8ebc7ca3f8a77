"""Read the digit on a picture file with a published network: ``python site/read.py PICTURE``."""

import argparse
import contextlib
import io
import sys

from hub import MODELS, DigitReader, read_picture


def main() -> None:
    """Print the digit and its probability, or one sentence that says why there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="+", help="PNG, JPEG, GIF, BMP or WEBP")
    names = sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())
    parser.add_argument("--network", default="step-6", choices=names)
    given, failed = parser.parse_args(), False
    with contextlib.redirect_stdout(io.StringIO()):  # it tells where it loads from
        model = DigitReader.from_pretrained(MODELS / given.network)
    for path in given.picture:
        try:
            digit, chance, note = read_picture(path, model)
            print(f"{path}: {digit} ({100 * chance:.1f} %) {note}".rstrip())
        except ValueError as error:
            print(error, file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
