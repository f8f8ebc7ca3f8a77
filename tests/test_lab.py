"""What a reader sees in JupyterLab: a real one, in a real browser; only with ``pytest --full``."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

import manage
import mistakes

pytestmark = pytest.mark.full
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ALL_RUN = """() => {
    const cells = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')];
    return cells.length > 5 && cells.every(cell => /\\[\\d+\\]/.test(cell.textContent));
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over a copy of the series, on the stand-in, and that copy."""
    pytest.importorskip("playwright", reason="needs playwright: requirements-dev.txt")
    pytest.importorskip("jupyterlab", reason="needs jupyterlab: requirements-dev.txt")
    if not CHROMIUM:
        pytest.skip("needs chromium or google-chrome")
    tree = tmp_path_factory.mktemp("lab")
    mistakes.copy_to(tree)
    settings = {  # outputs off the screen are in the page, too; no news in front of them
        "notebook-extension/tracker": '{"windowingMode": "none"}',
        "apputils-extension/notification": '{"fetchNews": "false"}',
    }
    for name, content in settings.items():
        path = tree / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--no-browser", "--allow-root", f"--ServerApp.root_dir={tree}"]
    options += ["--IdentityProvider.token="]
    environment = os.environ | {
        "DATASET": "digits",
        "JUPYTERLAB_SETTINGS_DIR": str(tree / "settings"),
    }
    for variable in ("MPLBACKEND", "TQDM_DISABLE", "SMOKE_TEST"):  # as at a reader's
        environment.pop(variable, None)
    command = [sys.executable, "-m", "jupyterlab", *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{port}/lab"
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, "JupyterLab did not start"
                    time.sleep(0.5)
            yield address, tree
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def look(page, name: str) -> None:
    """Pictures of the page in both themes, for a person: in the folder ``LAB_PICTURES``, if set."""
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        page.click("li.lm-MenuBar-item:has-text('Settings')")
        page.click("li[data-type=submenu]:has-text('Theme')")
        page.click(f"li:has-text('{theme}') >> visible=true")
        page.wait_for_function("t => document.body.dataset.jpThemeName === t", arg=theme)
        red = page.evaluate(
            "() => [...document.querySelectorAll('.jp-OutputArea-output')].filter(output => {"
            "const color = getComputedStyle(output).backgroundColor;"
            "const [r, g, b] = color.match(/[0-9.]+/g).map(Number);"
            "return r > 1.3 * g && r > 1.3 * b}).length"
        )
        assert red == 0, f"{red} outputs are red in {theme}"
        if folder := os.environ.get("LAB_PICTURES"):
            for place, cell in enumerate(
                page.query_selector_all(".jp-CodeCell:has(.jp-OutputArea)")
            ):
                if cell.query_selector("img, pre"):
                    cell.scroll_into_view_if_needed()
                    path = Path(folder) / f"{name}-{theme.split()[1]}-{place:02d}.png"
                    cell.screenshot(path=path)


@pytest.mark.parametrize("name", ["01_baseline", "15_your_own_digit"])
def test_a_reader_sees_tables_and_pictures_and_nothing_red(lab, browser, name):
    address, tree = lab
    page = browser.new_page(viewport={"width": 1_400, "height": 1_000})
    page.set_default_timeout(600_000)
    page.goto(f"{address}/workspaces/{name}/tree/notebooks/{name}.ipynb")  # no other tab comes back
    page.wait_for_selector(".jp-CodeCell")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    page.click("li.lm-MenuBar-item:has-text('Edit')")
    page.click("li:has-text('Clear Outputs of All Cells') >> visible=true")
    page.click("li.lm-MenuBar-item:has-text('Run')")
    page.click("li[data-command='runmenu:run-all'] >> visible=true")
    page.wait_for_function(ALL_RUN)
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")

    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0
    widths = page.eval_on_selector_all(
        ".jp-OutputArea-output img", "pictures => pictures.map(p => p.naturalWidth)"
    )
    assert widths and min(widths) > 100
    look(page, name)
    page.click("li.lm-MenuBar-item:has-text('File')")
    page.click("li[data-command='docmanager:save'] >> visible=true")
    page.wait_for_timeout(3_000)
    saved = nbformat.read(tree / "notebooks" / f"{name}.ipynb", as_version=4)
    outputs = {cell.id: cell.outputs for cell in saved.cells if cell.cell_type == "code"}
    kinds = {output.get("name") for found in outputs.values() for output in found}
    assert "stderr" not in kinds
    if name in manage.STEPS:
        (table,) = outputs["train"]  # one block: the bar cuts nothing
        rows = [line for line in table.text.splitlines() if line.strip()[:1].isdigit()]
        assert len(rows) == 19 and "it/s" not in table.text, table.text
    else:
        assert any("image/png" in output.get("data", {}) for output in outputs["read"])
    page.close()
