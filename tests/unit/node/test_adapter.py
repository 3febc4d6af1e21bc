from functools import partial

import numpy as np
import pytest
import torch
from openfl.utilities.optimizers.torch import FedProxAdam

from openfl_audio.node.adapter import FrameworkAdapterPlugin as Adapter
from openfl_audio.node.adapter import move
from openfl_audio.protocol.tensors import TensorFile, write_tensors


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
    """Return an array that cannot be written to, as Ray's shared memory gives it."""
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


class Tied(torch.nn.Module):
    """Two layers of one weight; `how` says what the second one has of it."""

    def __init__(self, how: str = "the same") -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 2, bias=False)
        self.second = torch.nn.Linear(2, 2, bias=False)
        weight = self.first.weight
        if how == "the same":
            self.second.weight = weight
        elif how == "a view":
            self.second.weight = torch.nn.Parameter(weight.detach())
        elif how == "transposed":
            self.second.weight = torch.nn.Parameter(weight.detach().t())
        elif how == "frozen":
            self.second.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
        elif how == "a row in a buffer":
            del self.second
            self.register_buffer("row", weight.detach()[1])


@pytest.mark.parametrize("how", ["the same", "a view", "transposed", "frozen", "a row in a buffer"])
def test_one_memory_under_two_names_travels_once(how):
    network, other = Tied(how), Tied(how)
    tensors = Adapter.get_tensor_dict(network)
    assert tensors.keys() == {"first.weight"}
    Adapter.set_tensor_dict(other, tensors)
    torch.testing.assert_close(other.state_dict(), network.state_dict())


def test_a_buffer_that_two_modules_share_travels_once():
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2))
    network[1].running_mean = network[0].running_mean
    assert "0.running_mean" in Adapter.get_tensor_dict(network)
    assert "1.running_mean" not in Adapter.get_tensor_dict(network)


def test_parts_of_a_buffer_that_do_not_overlap_and_are_trained_all_travel():
    flat = torch.arange(6.0)
    network = torch.nn.Module()
    network.register_parameter("left", torch.nn.Parameter(flat[:2]))
    network.register_parameter("right", torch.nn.Parameter(flat[2:]))
    network.register_buffer("flat", flat)
    # What is written to the parameters counts, whatever became of the buffer.
    tensors = {name: tensor.copy() for name, tensor in Adapter.get_tensor_dict(network).items()}
    assert tensors.keys() == {"left", "right", "flat"}
    Adapter.set_tensor_dict(network, tensors | {"flat": np.zeros(6, np.float32), "left": np.ones(2, np.float32)})
    assert network.flat.tolist() == [1, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["a view", "transposed", "frozen", "a row in a buffer"])
def test_what_was_one_memory_is_one_on_another_device(how):
    network = Tied(how)
    move(network, "meta")
    tensors = network.state_dict(keep_vars=True)
    first, second = tensors.pop("first.weight"), tensors.popitem()[1]
    assert second.untyped_storage()._cdata == first.untyped_storage()._cdata
    assert second.stride() == {"transposed": (1, 2), "a row in a buffer": (1,)}.get(how, (2, 1))
    assert second.storage_offset() == (2 if how == "a row in a buffer" else 0)


def test_the_state_of_a_tied_weight_travels_once():
    network = Tied()
    optimizer = OPTIMIZERS["SGD with momentum"](network.parameters())
    names = {"first.weight", "optimizer.momentum_buffer.first.weight"}
    assert Adapter.get_tensor_dict(network, optimizer).keys() == names


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, *FLOAT8])
def test_buffers_of_other_types_travel_through_a_file_without_loss(tmp_path, dtype):
    network, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    values = torch.polar(torch.ones(3), torch.arange(3.0)) if dtype.is_complex else torch.tensor([0.0, 1, 2]).to(dtype)
    network.register_buffer("odd", values)
    other.register_buffer("odd", torch.zeros_like(values))
    write_tensors(tmp_path / "model", Adapter.get_tensor_dict(network), {})
    with TensorFile(tmp_path / "model") as file:
        Adapter.set_tensor_dict(other, file.load())
    assert other.odd.dtype == dtype
    assert (
        other.odd.tolist() == network.odd.tolist() if dtype not in FLOAT8 else other.odd.float().tolist() == [0, 1, 2]
    )


def test_a_complex_parameter_is_written_with_its_optimizer_state():
    networks = [torch.nn.ParameterList([torch.tensor([1 + 2j, 3j])]) for _ in range(2)]
    optimizers = [OPTIMIZERS["SGD with momentum"](network.parameters()) for network in networks]
    networks[0][0].grad = torch.tensor([1j, 2.0 + 0j])
    optimizers[0].step()
    tensors = Adapter.get_tensor_dict(networks[0], optimizers[0])
    assert tensors["0"].shape == (2, 2)
    Adapter.set_tensor_dict(networks[1], tensors, optimizers[1])
    torch.testing.assert_close(networks[1][0], networks[0][0], rtol=0, atol=0)
    state = optimizers[1].state[networks[1][0]]["momentum_buffer"]
    torch.testing.assert_close(state, optimizers[0].state[networks[0][0]]["momentum_buffer"], rtol=0, atol=0)


@pytest.mark.parametrize("values", [torch.ones(2, 2).to_sparse(), torch.empty(2, dtype=torch.bits8)])
def test_a_buffer_that_cannot_travel_is_named(values):
    network = torch.nn.Linear(1, 1)
    network.register_buffer("odd", values)
    with pytest.raises(ValueError, match=r"tensor 'odd' is torch\..*, which cannot be transmitted"):
        Adapter.get_tensor_dict(network)


class Counting(torch.nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def test_extra_state_does_not_travel():
    assert Adapter.get_tensor_dict(Counting(1, 1)).keys() == {"weight", "bias"}


def test_constants_of_torchaudios_transforms_stay_and_what_batch_norm_counts_is_transmitted():
    from torchaudio.transforms import MelSpectrogram

    def create():
        return torch.nn.Sequential(MelSpectrogram(16_000, n_mels=8), torch.nn.BatchNorm1d(8), torch.nn.Linear(6, 2))

    model, other = create(), create()
    names = {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias"}
    tensors = Adapter.get_tensor_dict(model)
    assert set(tensors) == names
    assert {"0.spectrogram.window", "0.mel_scale.fb"} < set(model.state_dict())
    with torch.no_grad():
        other[0].spectrogram.window.zero_()
    Adapter.set_tensor_dict(other, tensors)
    torch.testing.assert_close(other[2].weight, model[2].weight)
    assert not other[0].spectrogram.window.any(), "it is not written to"
