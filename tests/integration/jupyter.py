"""JupyterLab in a browser: a server of its own, the browser of the system, and what people do with a notebook."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

from openfl_audio.experiments.local_federation import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 120
TOKEN = "token-of-a-test"


def browser_or_skip() -> None:
    pytest.importorskip("playwright", reason="playwright is not installed (the extra `dev` has it)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")


def write_notebook(path: Path, *cells: str, may_fail: bool = False) -> None:
    """Write a notebook; if its cells `may_fail`, Jupyter runs those after one that did."""
    metadata = {"tags": ["raises-exception"]} if may_fail else {}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell, metadata=metadata) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@contextmanager
def jupyter(folder: Path, log: Path) -> Iterator[str]:
    """Run a server of JupyterLab on the notebooks in `folder`, and yield its address."""
    port = free_port()
    settings = {
        "port": port, "ip": "127.0.0.1", "open_browser": False, "root_dir": str(folder), "allow_root": True,
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", *(f"--ServerApp.{name}={value}" for name, value in settings.items())]
    command.append(f"--IdentityProvider.token={TOKEN}")
    # Nobody is asked whether there should be news.
    asked = folder / "lab/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    asked.parent.mkdir(parents=True)
    asked.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "RUNTIME")}
    environment = os.environ | own | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "lab")}
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=environment)
    try:
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def browser() -> Iterator[Any]:
    """Open the browser, and yield a context for tabs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as in containers, Chromium's own sandbox does not start; the pages are ours.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            context = chromium.new_context(viewport={"width": 1200, "height": 1000})
            context.set_default_timeout(SECONDS * 1000)
            yield context
        finally:
            chromium.close()


class Notebook:
    """A notebook in a tab."""

    def __init__(self, context: Any, address: str, name: str) -> None:
        self.page = context.new_page()
        self._wait_until_open(address, f"{address}/tree/{name}?token={TOKEN}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")

    def _wait_until_open(self, address: str, page: str) -> None:
        from playwright.sync_api import Error

        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self.page.goto(page)
                return
            except Error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _wait_until_idle(self) -> None:
        self.page.get_by_text(re.compile(r"\| Idle$")).wait_for()

    def run_all(self) -> None:
        self._wait_until_idle()  # a kernel that was interrupted ends also what is asked of it too soon
        self._choose("Run", "Run All Cells")
        # On a slow machine the kernel of a notebook that has just been opened may not be known yet.
        select = self.page.get_by_role("button", name="Select Kernel")
        if select.is_visible():
            select.click()

    def interrupt(self) -> None:
        self._choose("Kernel", "Interrupt Kernel")

    def restart_and_clear(self) -> None:
        """Restart the kernel, and remove the output of all cells: what is shown later is of the new kernel."""
        self._choose("Kernel", "Restart Kernel and Clear Outputs of All Cells…")
        self.page.get_by_role("button", name="Confirm Kernel Restart").click()
        self.page.locator(".jp-OutputArea-output").first.wait_for(state="detached")

    def close(self) -> None:
        """Close the tab, as people do who do not wait: the kernel runs on."""
        self.page.close()

    def _choose(self, menu: str, entry: str) -> None:
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{entry}$")).click()

    def output(self, cell: int = -1) -> str:
        """Return the text that is shown below a cell."""
        cells = self.page.locator(".jp-CodeCell")
        number = cell % cells.count()
        return "\n".join(cells.nth(number).locator(".jp-OutputArea-output").all_inner_texts()).strip()

    def wait_for(self, pattern: str, cell: int = -1) -> str:
        """Return the output of a cell as soon as it has `pattern`."""
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, output := self.output(cell)):
            if time.monotonic() > deadline:
                others = [self.output(number) for number in range(self.page.locator(".jp-CodeCell").count())]
                raise AssertionError(f"no {pattern!r} in {output!r}; the cells have {others}")
            time.sleep(0.1)
        return output

    def widths(self) -> tuple[float, float]:
        """Return the widths of the widest output and of the place that it has, in pixels."""
        areas = self.page.locator(".jp-OutputArea-output")
        widths = areas.evaluate_all("areas => areas.map(area => [area.scrollWidth, area.clientWidth])")
        return max(width for width, _ in widths), min(room for _, room in widths if room)

    def screenshot(self, path: Path) -> None:
        self.page.screenshot(path=path)
