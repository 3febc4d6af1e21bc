"""OpenFL framework adapter for PyTorch that sends what is trained, and nothing else."""

import logging

import numpy as np
import torch
from openfl.plugins.frameworks_adapters.framework_adapter_interface import FrameworkAdapterPluginInterface

# It warns at every task that there is no optimizer state to hold back; with this adapter there never is.
logging.getLogger("openfl.federated.task.task_runner").setLevel(logging.ERROR)


class FrameworkAdapterPlugin(FrameworkAdapterPluginInterface):
    """Parameters that require a gradient, and buffers, go over the wire; frozen parameters stay on the node."""

    @staticmethod
    def get_tensor_dict(
        model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, np.ndarray]:
        """Trained tensors of `model` by name, as arrays that share no memory with it.

        `optimizer` belongs to OpenFL's interface; its state stays on the node.
        """
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in _travelling(model).items()}

    @staticmethod
    def set_tensor_dict(
        model: torch.nn.Module,
        tensor_dict: dict[str, np.ndarray],
        optimizer: torch.optim.Optimizer | None = None,
        device: str = "cpu",
    ) -> None:
        """Write `tensor_dict` into `model` in place and move it to `device`.

        Raises ValueError, naming the tensors, when names or shapes are not those of the model.
        """
        own = _travelling(model)
        missing, extra = own.keys() - tensor_dict.keys(), tensor_dict.keys() - own.keys()
        if missing or extra:
            raise ValueError(
                f"model tensors do not match: missing {sorted(missing)[:3]}, not in the model {sorted(extra)[:3]}"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                value = tensor_dict[name]
                if tuple(tensor.shape) != value.shape:
                    raise ValueError(f"tensor '{name}' has shape {value.shape}, the model's is {tuple(tensor.shape)}")
                tensor.copy_(torch.from_numpy(np.array(value)))
        model.to(device)


def _travelling(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    # state_dict leaves out non-persistent buffers and names a shared parameter under each of its names;
    # the values alias the model's memory, so they can be read and written in place.
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}
