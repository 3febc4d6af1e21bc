"""OpenFL framework adapter for PyTorch that sends what is trained, and nothing else."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from openfl.plugins.frameworks_adapters.framework_adapter_interface import FrameworkAdapterPluginInterface
from openfl.utilities.optimizers.torch import FedProxAdam, FedProxOptimizer
from torch.nn import Parameter

# It warns at every task that there is no optimizer state to hold back; with this adapter there never is.
logging.getLogger("openfl.federated.task.task_runner").setLevel(logging.ERROR)


# Optimizers whose state is all zeros before the first step; NAdam's, Rprop's and ASGD's is not.
START_AT_ZERO = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.Adadelta,
    FedProxOptimizer,
    FedProxAdam,
)


class FrameworkAdapterPlugin(FrameworkAdapterPluginInterface):
    """Parameters that require a gradient, and buffers, go over the wire; frozen parameters stay on the node."""

    @staticmethod
    def get_tensor_dict(
        model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, np.ndarray]:
        """Trained tensors of `model` by name. On the CPU the arrays are the model's own memory: send or copy them
        before it changes.

        With `optimizer`, its state too, as "optimizer.KEY.PARAMETER" (a state that does not exist yet is zero).
        """
        tensors = {name: _to_array(tensor) for name, tensor in _travelling(model).items()}
        if optimizer is not None:
            tensors |= {name: _to_array(state[key]) for name, state, key in _states(model, optimizer)}
        return tensors

    @staticmethod
    def set_tensor_dict(
        model: torch.nn.Module,
        tensor_dict: dict[str, np.ndarray],
        optimizer: torch.optim.Optimizer | None = None,
        device: str = "cpu",
    ) -> None:
        """Write `tensor_dict` into `model` (and the state of `optimizer`) in place, and move the model to `device`.

        Raises ValueError, naming the tensors, when names or shapes are not those of the model.
        """
        # First, so that an optimizer's state is made where the parameters are.
        own, wanted = _travelling(model), torch.device(device)
        if any(tensor.device != wanted for tensor in own.values()):
            own = _travelling(model.to(device))
        states = {} if optimizer is None else {name: (s, key) for name, s, key in _states(model, optimizer)}
        missing, extra = (own | states).keys() - tensor_dict.keys(), tensor_dict.keys() - (own | states).keys()
        if missing or extra:
            raise ValueError(
                f"model tensors do not match: missing {sorted(missing)[:3]}, not in the model {sorted(extra)[:3]}"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                _copy_into(name, tensor, tensor_dict[name])
            for name, (state, key) in states.items():
                if isinstance(state[key], torch.Tensor):
                    _copy_into(name, state[key], tensor_dict[name])
                else:  # a step count that some optimizers keep as a plain number
                    state[key] = type(state[key])(round(float(tensor_dict[name])))


def remember_weights(optimizer: torch.optim.Optimizer) -> None:
    """Tell one of OpenFL's FedProx optimizers the weights that it pulls towards: those of now."""
    for group in optimizer.param_groups:
        # OpenFL's `set_old_weights` would give every group the same ones.
        group["w_old"] = [parameter.detach().clone() for parameter in group["params"]]


def _travelling(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    # state_dict leaves out non-persistent buffers and names a shared parameter under each of its names;
    # the values alias the model's memory, so they can be read and written in place.
    tensors = model.state_dict(keep_vars=True).items()
    return {
        name: tensor.detach() for name, tensor in tensors if tensor.requires_grad or not isinstance(tensor, Parameter)
    }


def _states(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict, str]]:
    """Names, and where their values are, of the optimizer's state."""
    _create_missing_state(optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in _parameters(optimizer):
        state = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, torch.Tensor | int | float):
                yield f"optimizer.{key}.{names[parameter]}", state, key


def _create_missing_state(optimizer: torch.optim.Optimizer) -> None:
    """Optimizers make their state at a parameter's first step, from zeros: let them, in a step that changes nothing."""
    without = [parameter for parameter in _parameters(optimizer) if not optimizer.state.get(parameter)]
    if not without:
        return
    if not isinstance(optimizer, START_AT_ZERO):
        raise ValueError(
            f"the state of {type(optimizer).__name__} does not start at zero, so it cannot travel: use another "
            f"optimizer ({', '.join(each.__name__ for each in START_AT_ZERO)}) or another opt_treatment"
        )
    gradients = {parameter: parameter.grad for parameter in _parameters(optimizer)}
    values = {parameter: parameter.detach().clone() for parameter in without}
    for parameter in gradients:
        parameter.grad = None
    for parameter in without:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with torch.no_grad():
        for parameter in without:
            parameter.copy_(values[parameter])
            state = optimizer.state[parameter]
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    value.zero_()
                elif isinstance(value, int | float):
                    state[key] = type(value)(0)
    for parameter, gradient in gradients.items():
        parameter.grad = gradient


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _to_array(value: torch.Tensor | float) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        return np.array(value, np.float32)
    # NumPy has no bfloat16.
    value = value.float() if value.dtype == torch.bfloat16 else value
    return value.numpy(force=True)


def _copy_into(name: str, tensor: torch.Tensor, value: np.ndarray) -> None:
    if tuple(tensor.shape) != value.shape:
        raise ValueError(f"tensor '{name}' has shape {value.shape}, the model's is {tuple(tensor.shape)}")
    # As np.require, which takes longer than the copy of a small tensor.
    plain = value.flags.c_contiguous and value.flags.writeable
    tensor.copy_(torch.from_numpy(value if plain else np.array(value, order="C")))
