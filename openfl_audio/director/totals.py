"""Totals of all rounds that a director has closed since it started, for its monitoring."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Totals:
    """Sums over the rounds of all experiments.

    Attributes:
        rounds: rounds that were closed.
        seconds: how long they were open, together.
        counted: updates that counted.
        refused: updates that did not.
        missing: updates that had not come when their round closed.
        bytes_up: bytes that envoys have sent.
        bytes_down: bytes that envoys have received.
    """

    rounds: int = 0
    seconds: float = 0.0
    counted: int = 0
    refused: int = 0
    missing: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Add the record of a round."""
        self.rounds += 1
        self.seconds += record["seconds"]
        self.counted += len(record["envoys"])
        self.refused += len(record["refused"])
        self.missing += len(record["missing"])
        self.bytes_up += record["bytes_up"]
        self.bytes_down += record["bytes_down"]
