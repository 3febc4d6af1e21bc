import numpy as np
import pytest
import torch

from federation.adapter import FrameworkAdapterPlugin as Adapter


@pytest.fixture
def model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    return model


def test_frozen_parameters_stay_and_buffers_travel(model):
    assert set(Adapter.get_tensor_dict(model)) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias",
    }  # fmt: skip


def test_tensors_are_copies_and_come_back_with_their_types(model):
    tensors = Adapter.get_tensor_dict(model)
    assert tensors["1.num_batches_tracked"].dtype == np.int64
    tensors["2.bias"] += 5
    before = model[2].bias.item()
    assert tensors["2.bias"][0] == pytest.approx(before + 5)
    Adapter.set_tensor_dict(model, tensors)
    assert model[2].bias.item() == pytest.approx(before + 5)


def test_weight_normed_layers_travel_by_their_parametrization():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(2, 2, 3))
    other = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(2, 2, 3))
    Adapter.set_tensor_dict(other, Adapter.get_tensor_dict(layer))
    torch.testing.assert_close(other.weight, layer.weight)


def test_wrong_names_and_shapes_raise_and_name_the_tensor(model):
    tensors = Adapter.get_tensor_dict(model)
    with pytest.raises(ValueError, match=r"missing \['2.bias'\]"):
        Adapter.set_tensor_dict(model, {name: tensor for name, tensor in tensors.items() if name != "2.bias"})
    with pytest.raises(ValueError, match=r"not in the model \['9.bias'\]"):
        Adapter.set_tensor_dict(model, tensors | {"9.bias": tensors["2.bias"]})
    with pytest.raises(ValueError, match=r"'2.bias' has shape \(2,\), the model's is \(1,\)"):
        Adapter.set_tensor_dict(model, tensors | {"2.bias": np.zeros(2, np.float32)})
