"""Letters of sites' own texts reach a notebook through a real director, as far as each site's policy lets them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from openfl_audio.errors import SettingsError
from openfl_audio.experiments.local_federation import LocalFederation
from tests.integration.conftest import READY_SECONDS, USER
from workspaces.speech_recognition.letters import LETTERS, agree_with

pytestmark = pytest.mark.integration

TEXTS = {"a": ["a cab", "bad cab", "a bad dab"], "b": ["das maß", "süß", "das bad"]}


def table_of(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Write a second of noise for each text, and return the shard descriptor of their table."""
    folder.mkdir()
    rows = ["path,text,split"]
    for number, text in enumerate(texts):
        noise = np.random.default_rng(number).normal(0, 0.1, 16_000)
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
        rows.append(f"{number}.wav,{text},{'validation' if number == 2 else 'train'}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    params = {"data_path": str(folder / "table.csv"), "columns": {"path": "path", "text": "text", "split": "split"}}
    return {"template": "shard_descriptors.table.TableShardDescriptor", "params": params}


def test_sites_agree_on_letters_over_a_director(
    certificates: Path, connect: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with LocalFederation(tmp_path / "run", certificates, USER) as processes:
        processes.start_director()
        processes.start_envoy("a", table_of(tmp_path / "a", TEXTS["a"]))
        processes.start_envoy("b", table_of(tmp_path / "b", TEXTS["b"]), policy={"min_count": 2})
        processes.wait_until_ready(TEXTS, READY_SECONDS)
        registry = connect(processes).get_shard_registry()
    assert agree_with(registry).letters == " 'abcdsß"  # ü and m are in one text of b each
    assert "b alone has 'ß'" in capsys.readouterr().out
    with pytest.raises(SettingsError, match=r"does not write: 'ß' \(b 2\)\. Name them as well"):
        agree_with(registry, LETTERS)
