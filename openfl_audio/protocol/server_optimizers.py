"""Server optimizers, which step from the global model towards what the rule made of a round's updates."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from openfl.utilities.optimizers.numpy import NumPyAdagrad, NumPyAdam, NumPyYogi
from pydantic import Field

from openfl_audio.protocol.part import Part


class _ServerOptimizer(Part):
    """Base of server optimizers, which step from the global model towards what the rule made of the updates.

    Their state from round to round is named by `slots`: float32 arrays of the model's shapes. `whole_tensors` says that
    one needs all of a tensor at once.
    """

    slots: ClassVar[tuple[str, ...]]
    whole_tensors: ClassVar[bool] = False
    learning_rate: float = Field(default=0.01, gt=0, description="learning rate of the server optimizer")

    def initial_value(self, slot: str) -> float:
        """Return the value that fills the arrays of `slot` before the first round."""
        raise NotImplementedError

    def step(
        self, current: np.ndarray, combined: np.ndarray, state: dict[str, np.ndarray], steps_before: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Step from `current`, the global model, towards `combined`, what the rule made of the updates.

        Both are flat and of one length. `state` holds an array of that length for each slot, `steps_before` counts the
        rounds it has seen. Returns the next values in float64 and the next state in float32; the arguments stay as they
        are.
        """
        raise NotImplementedError


Beta = Annotated[float, Field(ge=0, lt=1)]


class _AdaptiveOptimizer(_ServerOptimizer):
    """Base of the optimizers of Reddi et al. 2020, arXiv 2003.00295, algorithm 2.

    With d = combined - current:

        m = beta1 * m + (1 - beta1) * d
        v = what the optimizer makes of v and d^2
        next = current + learning_rate * m / (sqrt(v) + epsilon)

    m starts at 0 and v at epsilon^2; nothing corrects the bias of either. `epsilon` is the paper's tau. The defaults of
    epsilon and betas are those of its experiments (appendix D.2).
    """

    epsilon: float = Field(
        default=1e-3, gt=0, description="number added to the root of the second moment; tau of the paper"
    )

    def initial_value(self, slot: str) -> float:
        return self.epsilon**2 if slot == "second_moment" else 0.0

    def step(
        self, current: np.ndarray, combined: np.ndarray, state: dict[str, np.ndarray], steps_before: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        change = np.subtract(combined, current, dtype=np.float64)
        moments = self.next_moments({slot: state[slot].astype(np.float64) for slot in self.slots}, change)
        first, second = moments.get("first_moment", change), moments["second_moment"]
        values = current + self.learning_rate * first / (np.sqrt(second) + self.epsilon)
        return values, {slot: moments[slot].astype(np.float32) for slot in self.slots}

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        raise NotImplementedError


class FedAdam(_AdaptiveOptimizer):
    """FedAdam of Reddi et al.: v = beta2 * v + (1 - beta2) * d^2."""

    slots = ("first_moment", "second_moment")
    optimizer: Literal["adam"] = Field(default="adam", description="FedAdam of Reddi et al.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="decay of first and second moment")

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        """Return the next m and v."""
        first = _decayed(moments["first_moment"], change, self.betas[0])
        return {"first_moment": first, "second_moment": _decayed(moments["second_moment"], change**2, self.betas[1])}


class FedYogi(_AdaptiveOptimizer):
    """FedYogi of Reddi et al.: v = v - (1 - beta2) * d^2 * sign(v - d^2)."""

    slots = ("first_moment", "second_moment")
    optimizer: Literal["yogi"] = Field(default="yogi", description="FedYogi of Reddi et al.")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), description="decay of first and second moment")

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        """Return the next m and v."""
        first = _decayed(moments["first_moment"], change, self.betas[0])
        before, square = moments["second_moment"], change**2
        second = before - (1 - self.betas[1]) * square * np.sign(before - square)
        return {"first_moment": first, "second_moment": second}


class FedAdagrad(_AdaptiveOptimizer):
    """FedAdagrad of Reddi et al.: v = v + d^2, and m = d, as beta1 is 0 in the paper's experiments."""

    slots = ("second_moment",)
    optimizer: Literal["adagrad"] = Field(default="adagrad", description="FedAdagrad of Reddi et al.")

    def next_moments(self, moments: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray]:
        """Return the next m and v."""
        return {"second_moment": moments["second_moment"] + change**2}


class _OpenFLOptimizer(_ServerOptimizer):
    """Base of OpenFL's optimizers, with OpenFL's constants: for runs that are to be compared with OpenFL's.

    Every slot starts at `initial_accumulator_value`.
    """

    openfl_class: ClassVar[type[NumPyAdam] | type[NumPyAdagrad]]
    initial_accumulator_value: float = Field(default=0.0, ge=0, description="value that the moments start at")

    def initial_value(self, slot: str) -> float:
        return self.initial_accumulator_value

    def step(
        self, current: np.ndarray, combined: np.ndarray, state: dict[str, np.ndarray], steps_before: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        name = "slice"
        values = current.astype(np.float64)  # a copy, as OpenFL steps in place
        optimizer = self.openfl_class(params={name: values}, **self.model_dump(exclude={"optimizer"}))
        for slot in self.slots:
            getattr(optimizer, f"grads_{slot}")[name] = state[slot].astype(np.float64)
        optimizer.current_step = {name: steps_before}  # Adagrad does not look at it
        optimizer.step({name: values - combined})
        return values, {slot: getattr(optimizer, f"grads_{slot}")[name].astype(np.float32) for slot in self.slots}


class OpenFLAdam(_OpenFLOptimizer):
    """OpenFL's Adam. Unlike FedAdam, it corrects the bias of both moments."""

    openfl_class = NumPyAdam
    slots = ("first_moment", "second_moment")
    optimizer: Literal["openfl_adam"] = Field(default="openfl_adam", description="Adam as OpenFL has it")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="decay of first and second moment")
    epsilon: float = Field(default=1e-8, gt=0, description="number added to the root of the second moment")


class OpenFLYogi(_OpenFLOptimizer):
    """OpenFL's Yogi: OpenFLAdam with another second moment, v = beta2 * v + (1 - beta2) * sign(d^2 - v) * d^2.

    It can fall below 0 where beta2 is below 0.5, so that is refused.
    """

    openfl_class = NumPyYogi
    slots = ("first_moment", "second_moment")
    optimizer: Literal["openfl_yogi"] = Field(default="openfl_yogi", description="Yogi as OpenFL has it")
    betas: tuple[Beta, Annotated[float, Field(ge=0.5, lt=1)]] = Field(
        default=(0.9, 0.999), description="decay of first and second moment"
    )
    epsilon: float = Field(default=1e-8, gt=0, description="number added to the root of the second moment")


class OpenFLAdagrad(_OpenFLOptimizer):
    """OpenFL's Adagrad: no first moment, and a v that starts at `initial_accumulator_value`."""

    openfl_class = NumPyAdagrad
    slots = ("squared",)
    optimizer: Literal["openfl_adagrad"] = Field(default="openfl_adagrad", description="Adagrad as OpenFL has it")
    initial_accumulator_value: float = Field(default=0.1, ge=0, description="value that the squares start at")
    epsilon: float = Field(default=1e-10, gt=0, description="number added to the root of the squares")


class FedLamb(_ServerOptimizer):
    """LAMB of You et al. 2020, arXiv 1904.00962, algorithm 2, with the change of a round as the negative gradient.

    Each tensor's step is as long as its own values, times the learning rate: with the bias of both moments corrected,

        r = m / (sqrt(v) + epsilon) - weight_decay * current
        next = current + learning_rate * |current| / |r| * r

    Where `current` or r is all zeros, the ratio is 1.
    """

    slots = ("first_moment", "second_moment")
    whole_tensors: ClassVar[bool] = True
    optimizer: Literal["lamb"] = Field(default="lamb", description="LAMB of You et al.: steps as long as the tensor")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="decay of first and second moment")
    epsilon: float = Field(default=1e-6, gt=0, description="what is added to the root of the second moment")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of the server optimizer")

    def initial_value(self, slot: str) -> float:
        """Return 0: both moments start there."""
        return 0.0

    def step(
        self, current: np.ndarray, combined: np.ndarray, state: dict[str, np.ndarray], steps_before: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Step from `current` towards `combined`, both a whole tensor; see the base class."""
        change = np.subtract(combined, current, dtype=np.float64)
        first = _decayed(state["first_moment"].astype(np.float64), change, self.betas[0])
        second = _decayed(state["second_moment"].astype(np.float64), change**2, self.betas[1])
        unbiased = [m / (1 - beta ** (steps_before + 1)) for m, beta in zip((first, second), self.betas, strict=True)]
        direction = unbiased[0] / (np.sqrt(unbiased[1]) + self.epsilon) - self.weight_decay * current
        # Not np.linalg.norm, whose last bits depend on the number of threads.
        lengths = [float(np.sqrt(np.square(each, dtype=np.float64).sum())) for each in (current, direction)]
        ratio = lengths[0] / lengths[1] if all(lengths) else 1.0
        values = current + self.learning_rate * ratio * direction
        return values, {"first_moment": first.astype(np.float32), "second_moment": second.astype(np.float32)}


def _decayed(average: np.ndarray, value: np.ndarray, beta: float) -> np.ndarray:
    return beta * average + (1 - beta) * value


ServerOptimizer = Annotated[
    FedAdam | FedYogi | FedAdagrad | FedLamb | OpenFLAdam | OpenFLYogi | OpenFLAdagrad, Field(discriminator="optimizer")
]
