from pathlib import Path

import pytest

from openfl_audio.config import Retention, load_settings
from openfl_audio.director.server import DirectorFile
from openfl_audio.envoy.settings import EnvoyFile, ShardDescriptorSettings, build_shard_descriptor
from openfl_audio.errors import SettingsError

REPOSITORY = Path(__file__).parents[2]
GOOD = """
settings:
  listen_port: 50051
  certificates: ../certificates
  runs: runs
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_shipped_settings_are_good_and_paths_are_relative_to_their_file():
    director = load_settings(REPOSITORY / "director" / "director_config.yaml", DirectorFile)
    envoy = load_settings(REPOSITORY / "envoys" / "superb.yaml", EnvoyFile)
    assert director.settings.certificates == envoy.params.certificates == REPOSITORY / "certificates"
    assert director.settings.listen_port == envoy.params.director_port


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("listen_port", "listen_prot"), r"unknown key 'settings.listen_prot' \(known here: listen_host, listen_port"),
        (("50051", "99999"), r"'settings.listen_port' is '?99999'?: input should be less than or equal to 65535"),
        (("50051", "'50051'"), r"'settings.listen_port' is '50051': input should be a valid integer"),
        (("  runs: runs", ""), r"'settings.runs' is missing"),
        (
            ("settings:", "settings:\n  listen_host: http://localhost"),
            r"'settings.listen_host' is .*neither a host name",
        ),
        (("settings:", "setings:"), r"unknown key 'setings' \(known here: settings\)"),
        (("runs: runs", "runs: [1"), "is not valid YAML"),
    ],
)
def test_a_wrong_settings_file_is_named_with_key_and_value(tmp_path, change, sentence):
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(SettingsError, match=sentence) as caught:
        load_settings(path, DirectorFile)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_need_no_certificates_and_take_ipv6_addresses_in_brackets_or_not(tmp_path):
    director = load_settings(write(tmp_path, "settings: {runs: runs, listen_host: '[::1]'}"), DirectorFile)
    assert (director.settings.listen_host, director.settings.certificates) == ("::1", None)
    params = "params: {director_host: 'fe80::1%eth0', work_dir: runs}"
    envoy = load_settings(write(tmp_path, f"{params}\nshard_descriptor: {{template: x}}"), EnvoyFile)
    assert (envoy.params.director_host, envoy.params.certificates) == ("fe80::1%eth0", None)


def test_a_missing_or_empty_file_raises(tmp_path):
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*nowhere.yaml: No such file"):
        load_settings(tmp_path / "nowhere.yaml", DirectorFile)
    with pytest.raises(SettingsError, match=r"must hold keys and values \(settings\)"):
        load_settings(write(tmp_path, ""), DirectorFile)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"template": "shard_descriptors.nothing.Here"}, "'shard_descriptors.nothing.Here' cannot be imported"),
        ({"template": "shard_descriptors.superb.Nothing"}, "cannot be imported"),
        (
            {"template": "superb"},
            r"'superb' cannot be imported: it should be MODULE.CLASS, or an installed shard descriptor \(there is",
        ),
        ({"template": ".Here"}, "'.Here' cannot be imported: it should be MODULE.CLASS"),
        (
            {"template": "shard_descriptors.superb.SuperbShardDescriptor", "params": {"data_path": "x", "rnak": 1}},
            "shard_descriptor.params do not fit .*'rnak'",
        ),
    ],
)
def test_a_wrong_shard_descriptor_is_named(tmp_path, settings, sentence, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=sentence):
        build_shard_descriptor(ShardDescriptorSettings(**settings), tmp_path)


def test_a_shard_descriptor_of_an_installed_package_is_found_by_its_name(tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    (installed / "mine-1.0.dist-info").mkdir(parents=True)
    (installed / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (installed / "mine-1.0.dist-info" / "entry_points.txt").write_text(
        "[openfl_audio.shard_descriptors]\nmine = builtins:dict\ngone = nothing:Here\n"
    )
    monkeypatch.syspath_prepend(installed)
    monkeypatch.chdir(tmp_path)
    assert build_shard_descriptor(ShardDescriptorSettings(template="mine", params={"a": 1}), tmp_path) == {"a": 1}
    with pytest.raises(SettingsError, match="'gone' cannot be imported: No module named 'nothing'"):
        build_shard_descriptor(ShardDescriptorSettings(template="gone"), tmp_path)
    with pytest.raises(SettingsError, match=r"or an installed shard descriptor \(gone, mine\)"):
        build_shard_descriptor(ShardDescriptorSettings(template="other"), tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_settings_with_a_byte_order_mark_are_read(tmp_path, encoding):
    path = tmp_path / "config.yaml"
    path.write_text("# Rechner von Müller\n" + GOOD, encoding=encoding)
    assert load_settings(path, DirectorFile).settings.listen_port == 50051


def test_settings_in_no_encoding_that_can_be_told_are_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# Rechner von Müller\n" + GOOD, encoding="latin-1")
    with pytest.raises(SettingsError, match=r"config.yaml is not UTF-8 \(byte 0xfc in line 1\): save it as UTF-8"):
        load_settings(path, DirectorFile)


@pytest.mark.parametrize(
    ("retention", "outdated"),
    [
        ({}, []),
        ({"experiments": 2}, ["b"]),
        ({"experiments": 0}, ["c", "a", "b"]),
        ({"days": 1.5}, ["b"]),
        ({"experiments": 1, "days": 10}, ["a", "b"]),
    ],
)
def test_retention_keeps_the_newest_and_the_young(retention, outdated):
    day = 86_400
    ended = {"a": 99 * day, "b": 98 * day, "c": 100 * day}
    assert Retention(**retention).outdated(ended, 100 * day) == outdated
