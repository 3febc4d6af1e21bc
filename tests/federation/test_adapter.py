from functools import partial

import numpy as np
import pytest
import torch
from openfl.utilities.optimizers.torch import FedProxAdam

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


def test_tensors_come_back_with_their_types(model):
    tensors = {name: tensor.copy() for name, tensor in Adapter.get_tensor_dict(model).items()}
    assert tensors["1.num_batches_tracked"].dtype == np.int64
    tensors["2.bias"] += 5
    before = model[2].bias.item()
    assert tensors["2.bias"][0] == pytest.approx(before + 5)
    Adapter.set_tensor_dict(model, tensors)
    assert model[2].bias.item() == pytest.approx(before + 5)


def test_tensors_are_written_to_where_the_model_has_moved(model):
    left = model[2].bias.detach()
    before = left.clone()
    tensors = {name: tensor + 1 for name, tensor in Adapter.get_tensor_dict(model).items()}
    # The one other device that is everywhere; it keeps no values.
    Adapter.set_tensor_dict(model, tensors, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    torch.testing.assert_close(left, before)


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


def locked(tensor: np.ndarray) -> np.ndarray:
    """As Ray's shared memory gives them."""
    tensor.setflags(write=False)
    return tensor


@pytest.mark.parametrize("lying", [locked, np.asfortranarray, np.fliplr])
def test_how_an_array_lies_in_memory_is_of_no_consequence(lying):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    network = torch.nn.Linear(3, 2, bias=False)
    given = lying(weight.copy())
    Adapter.set_tensor_dict(network, {"weight": given})
    np.testing.assert_array_equal(network.weight.detach().numpy(), given)


def make_network(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).to(dtype)


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer, times: int = 1) -> dict[str, torch.Tensor]:
    dtype = next(network.parameters()).dtype
    x, y = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=dtype), torch.tensor([[1.0], [-2.0]], dtype=dtype)
    for _ in range(times):
        optimizer.zero_grad()
        ((network(x) - y) ** 2).mean().backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


OPTIMIZERS = {
    "Adam": partial(torch.optim.Adam, lr=0.1),
    "Adam with AMSGrad": partial(torch.optim.Adam, lr=0.1, amsgrad=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.1),
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD with momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.3),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.5),
    "Adadelta": partial(torch.optim.Adadelta, lr=0.1),
    "Adamax": partial(torch.optim.Adamax, lr=0.1),
    "RAdam": partial(torch.optim.RAdam, lr=0.1),
}


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.Rprop, torch.optim.ASGD])
def test_a_state_that_does_not_start_at_zero_cannot_travel(kind):
    network = make_network()
    with pytest.raises(ValueError, match=f"the state of {kind.__name__} does not start at zero"):
        Adapter.get_tensor_dict(network, kind(network.parameters(), lr=0.1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_in_a_fresh_model_as_if_nothing_had_happened(name):
    network, other = make_network(), make_network(seed=1)
    optimizer = OPTIMIZERS[name](network.parameters())
    step(network, optimizer, times=3)
    fresh = OPTIMIZERS[name](other.parameters())
    Adapter.set_tensor_dict(other, Adapter.get_tensor_dict(network, optimizer), fresh)
    expected, found = step(network, optimizer, times=2), step(other, fresh, times=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_asking_for_a_state_that_does_not_exist_yet_changes_no_step(name):
    network, untouched = make_network(), make_network()
    optimizer, other = OPTIMIZERS[name](network.parameters()), OPTIMIZERS[name](untouched.parameters())
    tensors = Adapter.get_tensor_dict(network, optimizer)
    torch.testing.assert_close(dict(network.named_parameters()), dict(untouched.named_parameters()), rtol=0, atol=0)
    Adapter.set_tensor_dict(network, tensors, optimizer)
    torch.testing.assert_close(step(network, optimizer, 3), step(untouched, other, 3), rtol=0, atol=0)


def test_the_names_of_a_state_do_not_depend_on_whether_there_was_a_step():
    network = make_network()
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    before = {name: tensor.copy() for name, tensor in Adapter.get_tensor_dict(network, optimizer).items()}
    step(network, optimizer)
    after = Adapter.get_tensor_dict(network, optimizer)
    parameters = ["0.weight", "0.bias", "2.weight", "2.bias"]
    states = [f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in parameters]
    assert before.keys() == after.keys() == {*parameters, *states}
    assert all((before[name] == 0).all() for name in states)
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert (after["optimizer.step.0.weight"], after["optimizer.exp_avg.0.weight"].shape) == (1, (3, 2))


def test_a_parameter_that_never_gets_a_gradient_has_a_state_of_zeros_and_keeps_its_value():
    network = make_network()
    unused = torch.nn.Parameter(torch.full((2,), 7.0))
    network.register_parameter("unused", unused)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1, weight_decay=0.5)
    step(network, optimizer, times=2)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    values = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    tensors = Adapter.get_tensor_dict(network, optimizer)
    assert (tensors["optimizer.step.unused"], tensors["optimizer.step.0.weight"]) == (0, 2)
    np.testing.assert_array_equal(tensors["optimizer.exp_avg.unused"], [0, 0])
    torch.testing.assert_close(dict(network.named_parameters()), values, rtol=0, atol=0, check_stride=False)
    assert all(parameter.grad is gradients[name] for name, parameter in network.named_parameters())
    assert unused.grad is None


def test_frozen_parameters_have_no_state_that_travels():
    network = make_network()
    network[0].requires_grad_(False)
    optimizer = torch.optim.Adam([parameter for parameter in network.parameters() if parameter.requires_grad])
    assert not [name for name in Adapter.get_tensor_dict(network, optimizer) if "0." in name.removeprefix("optimizer.")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_travel_without_loss_bfloat16_as_float32(dtype):
    network, other = make_network(dtype), make_network(dtype, seed=1)
    optimizer, fresh = (OPTIMIZERS["SGD with momentum"](n.parameters()) for n in (network, other))
    step(network, optimizer, times=2)
    tensors = Adapter.get_tensor_dict(network, optimizer)
    expected_type = {torch.bfloat16: np.float32, torch.float16: np.float16, torch.float64: np.float64}[dtype]
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(expected_type)}
    Adapter.set_tensor_dict(other, tensors, fresh)
    assert other[0].weight.dtype == dtype
    torch.testing.assert_close(step(other, fresh), step(network, optimizer), rtol=0, atol=0)


def test_a_step_count_that_is_a_plain_number_stays_one():
    network = make_network()
    optimizer = FedProxAdam(network.parameters(), lr=0.1)
    optimizer.set_old_weights([parameter.detach().clone() for parameter in network.parameters()])
    step(network, optimizer, times=3)
    tensors = Adapter.get_tensor_dict(network, optimizer)
    assert tensors["optimizer.step.0.weight"] == 3
    # The mean of several envoys' counts need not be whole.
    Adapter.set_tensor_dict(network, tensors | {"optimizer.step.0.weight": np.array(4.6, np.float32)}, optimizer)
    count = optimizer.state[network[0].weight]["step"]
    assert (count, type(count)) == (5, int)


def test_a_missing_state_raises_and_is_named():
    network = make_network()
    optimizer = OPTIMIZERS["Adam"](network.parameters())
    with pytest.raises(ValueError, match=r"missing \['optimizer.exp_avg.0.bias', 'optimizer.exp_avg.0.weight'"):
        Adapter.set_tensor_dict(network, Adapter.get_tensor_dict(network), optimizer)
