import numpy as np
import pytest

from federation.wire import PIECE_BYTES, WireError, pack, pieces, unpack


def test_tensors_and_metadata_come_back_as_they_were():
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "steps": np.array(3),
        "none": np.zeros((0, 4), np.float16),
    }
    metadata = {"round": 3, "results": {"train": {"size": 2, "metrics": {"loss": 0.25}}}}
    data = pack(tensors, metadata)
    came, came_metadata = unpack(b"".join(pieces(data)))
    assert came_metadata == metadata
    assert came.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert came[name].dtype == tensor.dtype
        np.testing.assert_array_equal(came[name], tensor)


def test_a_transposed_tensor_is_sent_as_it_is_seen():
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3).T
    came, _ = unpack(pack({"a": tensor}))
    np.testing.assert_array_equal(came["a"], tensor)


def test_pieces_are_small():
    sizes = [len(piece) for piece in pieces(b"x" * (2 * PIECE_BYTES + 1))]
    assert sizes == [PIECE_BYTES, PIECE_BYTES, 1]


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff" * 100, pack({"a": np.zeros(100, np.float32)})[:-3]])
def test_other_bytes_raise(data):
    with pytest.raises(WireError, match="not a safetensors file"):
        unpack(data)
