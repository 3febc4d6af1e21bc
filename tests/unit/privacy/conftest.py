from pathlib import Path

import pytest

from openfl_audio.privacy.transcript import CertificateIdentity
from tests.unit.privacy.attempts import MANY, RememberingIdentity, make_identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CertificateIdentity]:
    """Eight envoys whose certificates one authority has signed."""
    folder: Path = tmp_path_factory.mktemp("certificates")
    return make_identities(folder)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CertificateIdentity]:
    """Sixty envoys whose certificates one authority has signed."""
    return make_identities(tmp_path_factory.mktemp("many"), MANY, RememberingIdentity)
