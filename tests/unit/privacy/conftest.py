from pathlib import Path

import pytest

from openfl_audio.privacy.transcript import CertificateIdentity
from tests.unit.privacy.attempts import make_identities


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CertificateIdentity]:
    """Eight envoys whose certificates one authority has signed."""
    folder: Path = tmp_path_factory.mktemp("certificates")
    return make_identities(folder)
