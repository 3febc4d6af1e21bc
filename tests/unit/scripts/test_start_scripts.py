"""The shell scripts find their repository from wherever, and by whatever link, they are called."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).resolve().parents[3]


def call(script: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(
        [str(script), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("script", ["envoys/start_envoy.sh", "director/start_director.sh"])
@pytest.mark.parametrize("links", [1, 2])
def test_a_start_script_works_through_links(tmp_path, script, links):
    target = REPOSITORY / script
    for number in range(links):
        link = tmp_path / f"folder {number}" / Path(script).name
        link.parent.mkdir()
        # A link to a link, of which the second one is relative.
        link.symlink_to(target if number == 0 else os.path.relpath(target, link.parent))
        target = link
    started = call(target, tmp_path, "--help")
    assert (started.returncode, started.stderr) == (0, "")
    command = Path(script).stem.removeprefix("start_")
    assert started.stdout.startswith(f"usage: openfl-audio {command} ")


def test_a_start_script_without_an_installation_names_the_repository_and_not_the_link(tmp_path):
    for name in ("scripts/python.sh", "envoys/start_envoy.sh"):
        (tmp_path / "repository" / name).parent.mkdir(parents=True)
        shutil.copy(REPOSITORY / name, tmp_path / "repository" / name)
    (tmp_path / "start").symlink_to(tmp_path / "repository" / "envoys" / "start_envoy.sh")
    environment = {"PATH": os.environ["PATH"], "PYTHON": "false"}
    started = subprocess.run(
        [tmp_path / "start"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert started.returncode == 1
    assert started.stderr.endswith(f"run 'make install' in {tmp_path / 'repository'}\n")
