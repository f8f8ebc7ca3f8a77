"""The series as a readable site: ``python site/book.py [FOLDER]`` (default: ``site/_site``).

The live page becomes its front, the notebooks with their committed outputs a book behind it.
Nothing is executed; a warning is an error. The folder is made anew.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SITE = Path(__file__).resolve().parent
ROOT = SITE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

import manage

PAGE = ("index.html", "style.css", "data.js", "mnist.js", "network.js", "pad.js", "page.js")
TEXTS = ("README.md", "CONTRIBUTING.md")


def rewrite(text: str, folder: str) -> str:
    """Markdown of a file in ``folder`` (from the root, "" for it) as the book needs it.

    README becomes the book's index; what is no page of it is linked on GitHub; badges, which would
    be fetched from elsewhere, become words.
    """
    repository, ref = manage.settings()
    text = re.sub(r"\[!\[check\]\([^)]+\)\]\([^)]+\)\n", "", text)
    text = re.sub(r"\[!\[([^\]]+)\]\([^)]+\)\]\(", r"[\1](", text)

    def link(found: re.Match) -> str:
        target, anchor = found[1], found[2] or ""
        path = os.path.normpath(f"{folder}/{target}".lstrip("/"))
        if path == "README.md":
            return f"]({os.path.relpath('index.md', folder or '.')}{anchor})"
        if path.endswith(".ipynb") or path in TEXTS or path.startswith("images"):
            return found[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"](https://github.com/{repository}/{kind}/{ref}/{path}{anchor})"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)", link, text)


def contents() -> str:
    """The table of contents, in the order of the series."""
    parts: dict[str, list[str]] = {"Steps": [], "Questions": [], "Exercises, worked": []}
    for name in manage.names():
        kind = "Exercises, worked" if "/" in name else "Questions"
        parts["Steps" if name in manage.STEPS else kind].append(f"notebooks/{name}")
    parts["Use it"] = ["CONTRIBUTING"]
    trees = []
    for caption, pages in parts.items():
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]
        trees.append("\n".join(lines))
    return "\n\n".join(trees)


def write_sources(folder: Path) -> None:
    """Copy what the book is made of, its links rewritten; the notebooks themselves stay."""
    shutil.copytree(ROOT / "images", folder / "images")
    for name in TEXTS:
        text = rewrite((ROOT / name).read_text(encoding="utf-8"), "")
        if name == "README.md":
            title, _, rest = re.sub(r"<!--.*?-->\n", "", text, flags=re.S).partition("\n")
            front = '<p><a href="../index.html"><b>Draw a digit</b></a>, and see it read.</p>'
            text = f"{title}\n\n{front}\n{rest}\n{contents()}\n"
        (folder / name.replace("README", "index")).write_text(text, encoding="utf-8")
    for name in manage.names():
        notebook = manage.read(name)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                place = (Path("notebooks") / name).parent.as_posix()
                cell["source"] = rewrite(cell["source"], place)
            if cell["id"] == "setup":
                cell["metadata"] = {"tags": ["remove-cell"]}
            elif cell["metadata"].get("jupyter", {}).get("source_hidden"):
                tags = cell["metadata"].get("tags", [])
                cell["metadata"]["tags"] = [*tags, "hide-input"]
        path = folder / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook), encoding="utf-8")


def build(output: Path) -> None:
    """Build page, networks and book into ``output``.

    Raises a subprocess.CalledProcessError if Sphinx warns of anything.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for name in PAGE:
        shutil.copy(SITE / name, output)
    front = (SITE / "index.html").read_text(encoding="utf-8")
    front = front.replace('href="../README.md"', 'href="book/index.html"')
    (output / "index.html").write_text(front, encoding="utf-8")
    shutil.copytree(SITE / "models", output / "models")
    (output / ".nojekyll").touch()  # GitHub Pages would leave out folders that begin with _
    repository, ref = manage.settings()
    environment = os.environ | {"BOOK_REPOSITORY": repository, "BOOK_BRANCH": ref}
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "sources"
        write_sources(sources)
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", str(SITE)]
        command += ["-d", f"{folder}/doctrees", str(sources), str(output / "book")]
        subprocess.run(command, check=True, env=environment)
    shutil.rmtree(output / "jupyter_execute", ignore_errors=True)  # MyST-NB's copies: no pages


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE / "_site"
    build(folder)
    print(f"{folder}: open index.html")
