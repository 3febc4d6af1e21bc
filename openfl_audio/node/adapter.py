"""OpenFL framework adapter for PyTorch that transmits trained tensors, and nothing else."""

import logging
from collections import defaultdict
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


# NumPy does not know them; each of their values is a float32 too.
NARROW_FLOATS = (
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


class FrameworkAdapterPlugin(FrameworkAdapterPluginInterface):
    """Adapter that transmits parameters that require a gradient, and buffers; frozen parameters stay on the node.

    So do the buffers of torchaudio's transforms, as these are constants that the recipe of the model makes.

    One memory under several names (tied weights, views) is transmitted once, under one of them. A complex tensor
    becomes a real one with a last dimension of 2, a float that NumPy does not know becomes float32. Extra state of
    modules is not transmitted.
    """

    @staticmethod
    def get_tensor_dict(
        model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, np.ndarray]:
        """Return the trained tensors of `model` by name.

        On the CPU the arrays are the model's own memory: send or copy them before it changes. With `optimizer`, its
        state is included, as "optimizer.KEY.PARAMETER" (a state that does not exist yet is zero).
        """
        tensors = {name: to_array(name, tensor) for name, tensor in transmitted(model).items()}
        if optimizer is not None:
            tensors |= {name: to_array(name, state[key]) for name, state, key in _states(model, optimizer)}
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
        move(model, device)  # first, so that an optimizer makes its state on the same device
        own = transmitted(model)
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


def transmitted(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return trained parameters and buffers of `model` by name, each memory once. They are the model's own memory."""
    tensors = _named_tensors(model)
    holders = _holders(tensors)
    constants = _constants(model)
    names = [name for name in tensors if holders.get(name) == name and name not in constants]
    # Buffers first: where one holds a trained parameter and more, what is written to the parameter counts.
    names.sort(key=lambda name: isinstance(tensors[name], Parameter))
    return {name: tensors[name].detach() for name in names}


def all_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return every name of each transmitted tensor, by the one under which it is transmitted."""
    names = defaultdict(list)
    for name, holder in _holders(_named_tensors(model)).items():
        names[holder].append(name)
    return dict(names)


def move(model: torch.nn.Module, device: str) -> None:
    """Move `model` to `device`, and keep tensors together that share memory.

    torch by itself moves shared buffers and views apart.
    """
    tensors = _named_tensors(model)
    wanted = torch.empty(0, device=device).device  # "cuda" is "cuda:0"
    if all(tensor.device == wanted for tensor in tensors.values()):
        return
    parts = {
        name: (holder, _place_in(tensors[holder], tensors[name]))
        for name, holder in _holders(tensors).items()
        if tensors[name] is not tensors[holder] and tensors[name].dtype == tensors[holder].dtype
    }
    model.to(device)
    moved = _named_tensors(model)
    for name, (holder, place) in parts.items():
        whole = moved[holder].data
        if place:
            shape, strides, offset = place
            whole = whole.as_strided(shape, strides, whole.storage_offset() + offset)
        moved[name].data = whole


def _place_in(whole: torch.Tensor, part: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], int] | None:
    """Return shape, strides and first element of `part` in `whole`, or None if it is all of it."""
    offset = (part.data_ptr() - whole.data_ptr()) // whole.element_size()
    place = part.shape, part.stride(), offset
    return None if place == (whole.shape, whole.stride(), 0) else place


def _named_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters, also frozen ones, and persistent buffers, under each of their names; not extra state."""
    return {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor) and name.rpartition(".")[2] != "_extra_state"
    }


def _constants(model: torch.nn.Module) -> set[str]:
    """Return the names of buffers that never change: windows, filters and kernels of torchaudio's transforms."""
    return {
        f"{place}.{name}" if place else name
        for place, module in model.named_modules()
        if type(module).__module__.startswith("torchaudio.transforms.")
        for name, _ in module.named_buffers(recurse=False)
    }


def _holders(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Return for each name the one under which its memory is transmitted.

    Frozen parameters of which nothing is trained are left out. A tensor is held by the first of those that include all
    of its memory: of trained ones, then of buffers, the largest. So a trained tensor is never held by one that is not.
    """
    by_storage = defaultdict[int, list[str]](list)
    for name, tensor in tensors.items():
        by_storage[_storage(tensor)].append(name)
    holders: dict[str, str] = {}
    for names in by_storage.values():
        kept: list[str] = []
        for name in names if len(names) == 1 else sorted(names, key=lambda name: _rank(tensors[name])):
            tensor = tensors[name]
            holder = next((each for each in kept if _includes(tensors[each], tensor)), None)
            if holder is None and (tensor.requires_grad or not isinstance(tensor, Parameter)):
                kept.append(name)
                holder = name
            if holder is not None:
                holders[name] = holder
    return holders


def _storage(tensor: torch.Tensor) -> int:
    """Return a number that tensors have in common where they may share memory."""
    if type(tensor) not in (torch.Tensor, Parameter) or tensor.layout is not torch.strided:
        return id(tensor)  # sparse, or of a class that keeps its values elsewhere
    return tensor.untyped_storage().data_ptr() or id(tensor)  # 0 where it is empty, or on the meta device


def _rank(tensor: torch.Tensor) -> tuple[bool, bool, int]:
    return not tensor.requires_grad, isinstance(tensor, Parameter), -tensor.nbytes


def _includes(whole: torch.Tensor, part: torch.Tensor) -> bool:
    if whole is part:
        return True
    outer, inner = _span(whole), _span(part)
    if len(outer) == whole.nbytes:  # without gaps
        return outer.start <= inner.start and inner.stop <= outer.stop
    same_places = (outer, whole.shape, whole.stride()) == (inner, part.shape, part.stride())
    return same_places and whole.dtype == part.dtype


def _span(tensor: torch.Tensor) -> range:
    """Return the addresses of the bytes from the first to the last one of `tensor`."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return range(tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size())


def _states(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict, str]]:
    """Yield the names of the optimizer's state, and where their values are."""
    _create_missing_state(optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in _parameters(optimizer):
        state = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, torch.Tensor | int | float):
                yield f"optimizer.{key}.{names[parameter]}", state, key


def _create_missing_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer make the state that it has not made yet, in a step that changes nothing.

    Optimizers make their state at a parameter's first step, from zeros.
    """
    without = [parameter for parameter in _parameters(optimizer) if not optimizer.state.get(parameter)]
    if not without:
        return
    if not isinstance(optimizer, START_AT_ZERO):
        raise ValueError(
            f"the state of {type(optimizer).__name__} does not start at zero, so it cannot be transmitted: use another "
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


def to_array(name: str, value: torch.Tensor | float) -> np.ndarray:
    """Return `value` as it is transmitted; on the CPU its own memory where that is possible.

    Raises ValueError, with `name`, for a type that has no such form (sparse, quantised, packed).
    """
    if not isinstance(value, torch.Tensor):
        return np.array(value, np.float32)
    try:
        if value.is_complex():
            value = torch.view_as_real(value.resolve_conj())
        elif value.dtype in NARROW_FLOATS:
            value = value.float()
        return value.numpy(force=True)
    except (TypeError, RuntimeError) as error:
        kind = value.dtype if value.layout is torch.strided else value.layout
        raise ValueError(f"tensor '{name}' is {kind}, which cannot be transmitted: {error}") from None


def _copy_into(name: str, tensor: torch.Tensor, value: np.ndarray) -> None:
    shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
    if shape != value.shape:
        raise ValueError(f"tensor '{name}' has shape {value.shape}, the model's is {shape}")
    # As np.require, which takes longer than the copy of a small tensor.
    plain = value.flags.c_contiguous and value.flags.writeable
    given = torch.from_numpy(value if plain else np.array(value, order="C"))
    tensor.copy_(torch.view_as_complex(given) if tensor.is_complex() else given)
