"""The proximal term of FedProx (Li et al., arXiv 1812.06127): mu / 2 * |w - w0|^2, with w0 from the round's begin."""

from collections.abc import Iterable

import torch


class ProximalTerm:
    """The term as gradients, for any optimizer: it keeps the weights near those of the global model.

    OpenFL's FedProx optimizers do the same in their steps, but they lose count of the weights where a layer was dropped
    and has no gradient.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], mu: float) -> None:
        """Remember the values of `parameters`; with `mu` 0 there is no term, and nothing is remembered."""
        self.mu = mu
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in parameters] if mu else []

    def add_gradients(self) -> None:
        """Add mu * (w - w0) to the gradients of the parameters that have one."""
        for parameter, start in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.mu)
