import json
from importlib.metadata import version

import pytest

from openfl_audio.errors import DefinitionError
from openfl_audio.node.compatibility import (
    EnvironmentMismatchError,
    Requirements,
    check_environment,
    describe_environment,
)


def test_what_is_here_is_enough_for_itself_and_for_what_it_has():
    check_environment(describe_environment(), "envoy 'a'")
    wanted = Requirements(packages=["numpy>=1.26", "pydantic"], memory_gb=0.1)
    sent = json.loads(json.dumps(describe_environment() | {"requirements": wanted.model_dump(exclude_defaults=True)}))
    check_environment(sent, "envoy 'a'")


def test_another_version_is_named():
    with pytest.raises(EnvironmentMismatchError, match="^envoy 'a' has torch .* instead of 1.0: install the same"):
        check_environment(describe_environment() | {"torch": "1.0"}, "envoy 'a'")


def test_all_that_lacks_is_told_in_one_sentence():
    packages = ["numpy<1", "no-such-package>=2", "torch"]
    wanted = Requirements(packages=packages, memory_gb=1e6, gpu_memory_gb=1e6)
    with pytest.raises(EnvironmentMismatchError) as raised:
        check_environment(describe_environment() | {"requirements": wanted.model_dump()}, "envoy 'pi'")
    sentence = str(raised.value)
    numpy = version("numpy")
    assert sentence.startswith(f"envoy 'pi' has numpy {numpy}, and numpy<1 is wanted; no no-such-package, and no-such-")
    assert " GB of memory, and 1e+06 are wanted; " in sentence
    assert "torch" not in sentence
    assert sentence.endswith("and 1e+06 GB are wanted: no envoy installs anything by itself")


def test_a_requirement_that_pip_would_not_understand_is_refused():
    with pytest.raises(DefinitionError, match="'numpy 1.0' is no package as pip names it, such as 'pystoi>=0.4'"):
        Requirements(packages=["numpy 1.0"])
    with pytest.raises(DefinitionError, match="Extra inputs are not permitted"):
        Requirements(ram=4)
