"""Low-rank adapters (LoRA) among the tensors of a model, and rules that aggregate the products of their factors.

A layer with an adapter computes (W + s (R + B A)) x. The factors A (r, inputs) and B (outputs, r) are trained. The
residual R (outputs, inputs), where there is one, is made by the director, and no node sends it. The mean of the factors
is exact for neither of them: mean(B) mean(A) is not mean(B A). The rules here take the mean of the products.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from threadpoolctl import ThreadpoolController

from openfl_audio.protocol.part import Part
from openfl_audio.protocol.rules import Mean

# The names that the library peft gives to the factors of the adapter "default".
FACTOR_A, FACTOR_B = ".lora_A.default.weight", ".lora_B.default.weight"
RESIDUAL = ".base_layer.parametrizations.weight.0.lora_residual"
# The share of the mean product's Frobenius norm that a round's next adapters lose, in the record of the round.
ERROR = "adapter_error"
# An adapter's factors A and B in one update.
Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """The names of an adapter's tensors; `residual` is "" where there is none."""

    a: str
    b: str
    residual: str

    @property
    def names(self) -> list[str]:
        """Return the names that there are."""
        return [name for name in (self.a, self.b, self.residual) if name]


def find_pairs(names: Iterable[str]) -> list[Pair]:
    """Return the adapters that have both factors among `names`, in the order of their names."""
    known = set(names)
    layers = sorted(name.removesuffix(FACTOR_A) for name in known if name.endswith(FACTOR_A))
    return [
        Pair(layer + FACTOR_A, layer + FACTOR_B, layer + RESIDUAL if layer + RESIDUAL in known else "")
        for layer in layers
        if layer + FACTOR_B in known
    ]


def is_given(name: str) -> bool:
    """Tell whether the tensor of this name comes from the director, and is sent by no node."""
    return name.endswith(RESIDUAL)


@dataclass(frozen=True)
class Product:
    """The next tensors of an adapter, by name, and squared Frobenius norms of the mean product and of what is lost."""

    tensors: dict[str, np.ndarray]
    square: float
    square_lost: float


class _ProductRule(Part):
    """Base of the rules that combine products of factors; other tensors become their weighted mean."""

    whole_tensors: ClassVar[bool] = False
    weighted: ClassVar[bool] = True
    rule: str

    def check_number(self, updates: int) -> None:
        """Do nothing: any number of updates will do."""

    def combine(self, updates: Iterable[np.ndarray], weights: Sequence[float], current: np.ndarray) -> np.ndarray:
        """Return the weighted mean of `updates`, flat and of one length: tensors that are no part of an adapter."""
        return Mean().combine(updates, weights, current)

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError unless a model that transmits tensors of these `names` has what the rule combines."""
        if not find_pairs(names):
            raise ValueError(
                f"rule '{self.rule}' combines the products of adapters, and the model trains none with both factors: "
                "give it an adapter without freeze_a, or take the rule 'mean'"
            )

    def combine_products(
        self, pair: Pair, current: dict[str, np.ndarray], factors: Sequence[Factors], shares: Sequence[float]
    ) -> Product:
        """Return the next tensors of the adapter `pair`.

        Args:
            pair: its names.
            current: its tensors in the global model, by name.
            factors: A (r, inputs) and B (outputs, r) of each update.
            shares: the updates' shares of the weight, with sum 1.
        """
        raise NotImplementedError


class LoraResidual(_ProductRule):
    """Mean of both factors, with what that loses added to the residual: exact, as the residual reaches every node.

    R + mean(B A) - mean(B) mean(A): FedEx-LoRA, Singhal et al. 2024, arXiv 2410.09432, equations 6 and 7. The residual
    is of the size of the layer's weight, and is transmitted to nodes in every round, never back.
    """

    rule: Literal["lora_residual"] = Field(
        default="lora_residual", description="mean of adapters, and what it loses added to their layers (FedEx-LoRA)"
    )

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError unless all adapters of a model that transmits tensors of these `names` have a residual."""
        names = list(names)
        super().check_names(names)
        lacking = [pair.a for pair in find_pairs(names) if not pair.residual]
        if lacking:
            raise ValueError(f"rule '{self.rule}' needs adapters with residual=True, and '{lacking[0]}' has none")

    def combine_products(
        self, pair: Pair, current: dict[str, np.ndarray], factors: Sequence[Factors], shares: Sequence[float]
    ) -> Product:
        """Return the mean of each factor, and the next residual."""
        left, right = stack(factors, shares)
        mean_a, mean_b = (_mean([each[i].astype(np.float64) for each in factors], shares) for i in range(2))
        product = left @ right
        residual = current[pair.residual] + (product - mean_b @ mean_a)
        return Product({pair.a: mean_a, pair.b: mean_b, pair.residual: residual}, _square(product), 0.0)


class LoraSvd(_ProductRule):
    """The best approximation of the mean product of the adapters' rank, by its singular values (Eckart and Young 1936).

    Bai et al. 2024, arXiv 2402.11505 (FlexLoRA), section 3.2, with one rank for all. A keeps its size, so that B learns
    as fast as before: its rows are orthogonal, and all as long.
    """

    rule: Literal["lora_svd"] = Field(
        default="lora_svd", description="best approximation of the mean of the adapters' products, of their rank"
    )

    def combine_products(
        self, pair: Pair, current: dict[str, np.ndarray], factors: Sequence[Factors], shares: Sequence[float]
    ) -> Product:
        """Return the factors of the mean product's approximation. The residual, if there is one, stays as it is."""
        rank = len(current[pair.a])
        left, right = stack(factors, shares)
        # Singular values of a product of thin matrices are those of the small product of their triangular factors.
        basis_out, upper_left = np.linalg.qr(left)
        basis_in, upper_right = np.linalg.qr(right.T)
        u, values, v = np.linalg.svd(upper_left @ upper_right.T, full_matrices=False)
        length = np.linalg.norm(current[pair.a].astype(np.float64)) / math.sqrt(rank) or 1.0
        factor_a = length * (v[:rank] @ basis_in.T)
        factor_b = basis_out @ (u[:, :rank] * (values[:rank] / length))
        return Product({pair.a: factor_a, pair.b: factor_b}, _square(values), _square(values[rank:]))


LoraRule = Annotated[LoraResidual | LoraSvd, Field(discriminator="rule")]


def stack(factors: Sequence[Factors], shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return left (outputs, n r) and right (n r, inputs), float64, whose product is the mean of the products B A.

    Stacking is exact: Wang et al. 2024, arXiv 2409.05976 (FLoRA), equation 5.
    """
    left = [share * b.astype(np.float64) for (_, b), share in zip(factors, shares, strict=True)]
    return np.concatenate(left, axis=1), np.concatenate([a.astype(np.float64) for a, _ in factors])


def combine_adapters(
    rule: LoraResidual | LoraSvd,
    names: Iterable[str],
    current: Callable[[str], np.ndarray],
    updates: Sequence[Callable[[str], np.ndarray]],
    weights: Sequence[float],
) -> Iterator[Product]:
    """Yield the next tensors of each adapter of a model with tensors of these `names`.

    Args:
        rule: the rule.
        names: of the model's tensors.
        current: returns a tensor of the global model, in its shape.
        updates: return a tensor of each update, in its shape.
        weights: of the updates.
    """
    shares = [weight / sum(weights) for weight in weights]
    # Matrix products on several threads differ in their last bits with the number of threads.
    with _single_thread():
        for pair in find_pairs(names):
            factors = [(read(pair.a), read(pair.b)) for read in updates]
            yield rule.combine_products(pair, {name: current(name) for name in pair.names}, factors, shares)


def lost_share(products: Sequence[Product]) -> float:
    """Return the share of the Frobenius norm of all mean products together that their next adapters lose."""
    square = math.fsum(product.square for product in products)
    return math.sqrt(math.fsum(product.square_lost for product in products) / square) if square > 0 else 0.0


def _mean(arrays: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    mean = np.zeros_like(arrays[0])
    for array, share in zip(arrays, shares, strict=True):
        mean += share * array
    return mean


def _square(values: np.ndarray) -> float:
    return float(np.square(values).sum())


@contextmanager
def _single_thread() -> Iterator[None]:
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
