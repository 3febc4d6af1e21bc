import pytest

from openfl_audio.errors import DirectorError
from openfl_audio.notebook.director_client import DirectorClient
from openfl_audio.protocol.codec import decode_answer
from openfl_audio.protocol.messages import Order


def test_an_answer_of_another_kind_is_told_as_one_of_another_version():
    client = DirectorClient("me", "127.0.0.1:1", None)
    with (
        pytest.raises(DirectorError, match="127.0.0.1:1 answers otherwise .*: not a Order: experiment"),
        client.translated_errors(),
    ):
        decode_answer(b"{}", Order)
