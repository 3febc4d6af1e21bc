"""docs/tutorials/your-own-recordings.md: its settings, commands and code are run on recordings such as it tells of."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from openfl_audio.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[4]
PAGE = (REPOSITORY / "docs" / "tutorials" / "your-own-recordings.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.replace("\\\n", "").splitlines()]


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch) -> Path:
    """The folder of the page's site, whose table begins as the page shows it."""
    folder = tmp_path / "recordings"
    generator = np.random.default_rng(0)
    rows = blocks("text")[0].splitlines()
    words = {"yes": 400, "no": 1_600}
    rows += [f"{who}/{i}.wav;{word};{who}" for who in "bcdefg" for i, word in enumerate([*words] * 3)]
    for row in rows[1:]:
        name, word, _ = row.split(";")
        path = folder / name.replace("\\", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        hz = words[word.strip()] * generator.uniform(0.9, 1.1)
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(4_000) / 16_000), 16_000)
    (folder / "recordings.csv").write_bytes(b"\xef\xbb\xbf" + "\n".join(rows).encode())
    (tmp_path / "envoy_1.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_settings_are_checked_without_a_fault(capsys):
    for command in COMMANDS[:2]:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "corpus: recordings" in out
    assert "durations: 0.25 to 0.25 s" in out


def test_labels_agree_as_the_page_says(capsys):
    exec(blocks("python")[0], {})
    assert capsys.readouterr().out.splitlines()[: len(expected := blocks("text")[1].splitlines())] == expected


@pytest.mark.training
def test_the_command_trains(tmp_path):
    words = shlex.split(COMMANDS[2])
    from openfl_audio.experiments import workloads

    # The name is that of an entry point, which an environment made before it does not have.
    name = "audio_classification"
    assert words[2] == name
    place = name if name in workloads.workload_names() else str(REPOSITORY / "workspaces" / name)
    assert main([*words[1:2], place, *words[3:]]) == 0
    result = json.loads((tmp_path / "runs" / "own" / "result.json").read_text())
    assert result["clients"] == 2
    assert result["metrics"]["best"]["sites"]["clients"] >= 1


def test_the_notebook_is_as_long_as_the_page_says():
    cells = json.loads((REPOSITORY / "notebooks" / "your_own_data.ipynb").read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in cell["source"] if line.strip()]
    assert f"is {len(lines)} lines of code" in PAGE
    assert len(lines) < 40
