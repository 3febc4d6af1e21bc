#!/usr/bin/env python3
"""Take the pictures of docs/images: JupyterLab in the middle of a round, with a refused site, and after a cut link.

    python scripts/screenshots.py [--of notebook page readme] [--out docs/images]

The page in the browser is shown with the federation, all experiments, a running one, a refused site, on a phone and in
the dark. A director and three envoys are real processes, one of them behind a proxy whose plug is pulled. The README is
shown as the documentation's site renders it. The browser is the system's Chromium.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = REPOSITORY / "tests/integration"  # the toy experiment, which envoys import as `toy`
sys.path[:0] = [str(REPOSITORY), str(TESTS)]

from openfl_audio import Federation, FLExperiment  # noqa: E402
from openfl_audio.experiments.local_federation import LocalFederation  # noqa: E402
from openfl_audio.testing.fault_proxy import Proxy  # noqa: E402
from tests.integration.jupyter import Notebook, browser, jupyter, write_notebook  # noqa: E402
from tests.integration.page import Tab  # noqa: E402

SITES = {"site-a": 40, "site-b": 60, "site-c": 20}
BROKEN = "site-c"  # its updates are refused in one picture, and its link is cut in another
USER = "scientist"
WIDE, LOW, PHONE = ({"width": width, "height": height} for width, height in ((1280, 900), (1280, 600), (390, 844)))
START = """
import toy
from toy.experiment import PointsData, model_interface, task_interface
from openfl_audio import Federation, FLExperiment, Participation, report


def train(model, points, device, optimizer):
    import time
    for step in range(len(points) * 5):
        time.sleep(0.05)
        report(step + 1, len(points) * 5, clips=8 * (step + 1), loss=2 / (step + 2) ** 0.5)
    for parameter in model[0].parameters():
        parameter.data.add_(0.5)
    loss = 1 / model[0].weight.item()
    if len(points) == {diverges}:
        model[0].weight.data.fill_(float("nan"))
    return {{"loss": loss}}


def validate(model, points, device):
    return {{"accuracy": 1 - abs(2 - model[0].weight.item()) / 2 - len(points) / 1000}}


experiment = FLExperiment(Federation("{user}", "127.0.0.1", {port}, tls=False), "{name}", workspace=toy)
experiment.start(
    model_provider=model_interface(),
    task_keeper=task_interface(train, validate),
    data_loader=PointsData(),
    rounds_to_train=6,
    participation=Participation(quorum=1, deadline_seconds=60),
)
"""


def main() -> int:
    """Take the pictures, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs="+", choices=PICTURES, default=list(PICTURES), help="what to take pictures of")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(TESTS)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in options.of:
        with tempfile.TemporaryDirectory(prefix="screenshots-") as temporary:
            PICTURES[name](Path(temporary), options.out)
    return 0


@contextmanager
def federation(folder: Path, page: bool = False) -> Iterator[tuple[LocalFederation, Proxy]]:
    """Yield a federation of the three sites, and the line of one of them."""
    local = LocalFederation(folder, None, USER, page=page)
    with Proxy(local.port) as line, local:
        local.start_director()
        for name, number in SITES.items():
            shard = {"template": "toy.shard.PointsShardDescriptor", "params": {"n_points": number}}
            changes = {"director_port": line.port} if name == BROKEN else {}
            local.start_envoy(name, shard, reports="logs", **changes)
        local.wait_until_ready(SITES, 120)
        yield local, line


def take_notebook(folder: Path, out: Path) -> None:
    """Take the pictures of JupyterLab."""
    lab = folder / "lab"
    lab.mkdir()
    with (
        federation(folder) as (local, line),
        jupyter(lab, folder / "jupyter.log") as address,
        browser() as context,
    ):
        notebook = open_and_run(lab, address, context, local.port, "noisy-words", SITES[BROKEN])
        notebook.wait_for(rf"(?s)round 2 of 6.*train \d.*{BROKEN}\s+refused: ", cell=1)
        picture(notebook, out / "refused.png")
        notebook.close()
        FLExperiment(Federation(USER, "127.0.0.1", local.port, tls=False)).attach("noisy-words").stop()
        notebook = open_and_run(lab, address, context, local.port, "words")
        notebook.wait_for(r"(?s)round 2 of 6.*train \d\d.*train \d\d.*train \d\d", cell=1)
        picture(notebook, out / "round.png")
        line.pull()
        notebook.wait_for("no word for [5-9]", cell=1)
        picture(notebook, out / "cut-link.png")


def take_page(folder: Path, out: Path) -> None:
    """Take the pictures of the page in the browser."""
    with federation(folder, page=True) as (local, _), browser() as context:
        noisy = start(local.port, "noisy-words", SITES[BROKEN])
        with Tab(context, local, viewport=WIDE) as tab:
            tab.log_in(USER, "/experiments/noisy-words")
            tab.see("round [2-5] of 6.*works", seconds=120)
            tab.see("refused", tab.row("The open round", BROKEN), seconds=120)
            snap(tab, out / "page-refused.png")
        noisy.stop()
        start(local.port, "words")
        with (
            Tab(context, local, viewport=WIDE) as tab,
            Tab(context, local, viewport=WIDE, color_scheme="dark") as dark,
            Tab(context, local, viewport=PHONE, device_scale_factor=2) as phone,
        ):
            for each in (tab, dark, phone):
                each.log_in(USER, "/experiments/words")
            for each, name in ((tab, "experiment"), (dark, "dark"), (phone, "phone")):
                each.see("round [3-5] of 6.*train \\d\\d.*train \\d\\d", seconds=120)
                snap(each, out / f"page-{name}.png", whole=each is tab)
            start(local.port, "more-words")
            tab.page.set_viewport_size(LOW)  # as much as the next two pages fill
            tab.go("/experiments")
            for name, state in (("words", "in progress"), ("more-words", "works on"), ("noisy-words", "stopped")):
                tab.see(state, f"tr:has(a:text-is('{name}'))", seconds=120)
            snap(tab, out / "page-experiments.png")
            tab.page.goto(tab.address)
            tab.see("train \\d\\d.*train \\d\\d", "table[aria-label=Envoys]", seconds=120)
            snap(tab, out / "page-federation.png")


def take_readme(folder: Path, out: Path) -> None:
    """Take the picture of the README's page of the site, which is built for it."""
    build = [sys.executable, "-m", "sphinx", "-c", "docs", "-E", "-q", ".", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True)
    with browser() as context:
        page = context.new_page()
        page.set_viewport_size(WIDE)
        page.goto((folder / "README.html").as_uri(), wait_until="load")
        save(page, out / "readme.png", full_page=True)


def start(port: int, name: str, diverges: int = 0) -> FLExperiment:
    """Start an experiment from here; a site of `diverges` points sends NaN."""
    names: dict[str, FLExperiment] = {}
    exec(START.format(user=USER, port=port, name=name, diverges=diverges), names)
    return names["experiment"]


def snap(tab: Tab, path: Path, whole: bool = False) -> None:
    """Save what a tab shows, or the whole of its page."""
    tab.page.wait_for_timeout(300)  # a bar that moves comes to its place
    save(tab.page, path, full_page=whole)


def save(shown: Any, path: Path, **options: Any) -> None:
    """Save a picture of a page of the browser, or of a part of one."""
    shown.screenshot(path=path, **options)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


PICTURES = {"notebook": take_notebook, "page": take_page, "readme": take_readme}


def open_and_run(lab: Path, address: str, context: object, port: int, name: str, diverges: int = 0) -> Notebook:
    """Open a notebook that starts an experiment and watches it, and run it. A site of `diverges` points sends NaN."""
    start = START.format(user=USER, port=port, name=name, diverges=diverges)
    write_notebook(lab / f"{name}.ipynb", start, "history = experiment.watch()")
    notebook = Notebook(context, address, f"{name}.ipynb")
    notebook.run_all()
    return notebook


def picture(notebook: Notebook, path: Path) -> None:
    """Save what is shown below the cell that watches."""
    save(notebook.page.locator(".jp-CodeCell").nth(1), path)


if __name__ == "__main__":
    sys.exit(main())
