"""Choices that a command lists are those of the functions that it calls."""

from typing import Any, get_args

import pytest

from openfl_audio.cli.data import Download, PrepareFsd50k, PrepareHubertTargets, PrepareLibrispeech
from openfl_audio.cli.demo import Demo
from openfl_audio.cli.options import Command
from openfl_audio.cli.train import SETTINGS, Train
from openfl_audio.training.run_settings import RunSettings


def choices(command: type[Command], name: str) -> tuple[Any, ...]:
    return get_args(command.model_fields[name].annotation)


def test_choices_of_preparation():
    from shard_descriptors.fsd50k.store import FEATURES
    from shard_descriptors.librispeech.preparation import PARTITIONS
    from workspaces.hubert_codebooks.targets import CODEBOOKS

    assert choices(PrepareFsd50k, "features") == FEATURES
    assert choices(PrepareLibrispeech, "partition") == PARTITIONS
    # It may be a file as well.
    assert all(codebook in PrepareHubertTargets.model_fields["codebook"].description for codebook in CODEBOOKS)


def test_choices_of_the_demo():
    pytest.importorskip("espeakng_loader")
    from openfl_audio.testing.demo import PRIVATE, WORKLOADS

    # Another option asks for the one that is private.
    assert {*choices(Demo, "workload"), PRIVATE} == {*WORKLOADS}


def test_options_that_are_settings_have_the_help_of_the_settings():
    for name in SETTINGS:
        assert RunSettings.model_fields[name].description
        assert Train.model_fields[name].description is None


def test_download_lists_all_corpora():
    from shard_descriptors.download import CORPORA

    assert Download.model_fields["names"].json_schema_extra["choices"] == tuple(CORPORA)
