"""Data interface that gives an experiment's tasks the data of the node's shard."""

from typing import Any, ClassVar

from openfl.interface.interactive_api.experiment import DataInterface
from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor


class ShardData(DataInterface):
    """A DataInterface that makes the loaders of a shard's train and validation datasets when it is given the shard.

    Sizes are those of the loaders: a client's update weighs as much as its train size, its metrics as the validation's.

    Attributes:
        units: what the sizes count, "clips" or "frames", by type of task. No size counts for more than the node's shard
            registered in its unit; other units have no bound.
    """

    units: ClassVar[dict[str, str]] = {"train": "clips", "validate": "clips"}

    def __init__(self) -> None:
        # OpenFL's would take arguments, and write them into its plan as YAML.
        super().__init__()

    def make_train(self, dataset: ShardDataset) -> Any:
        """Return the loader of a training split."""
        raise NotImplementedError

    def make_validation(self, dataset: ShardDataset) -> Any:
        """Return the loader of a validation split; by default as that of a training split."""
        return self.make_train(dataset)

    @property
    def shard_descriptor(self) -> ShardDescriptor:
        """Return the shard. Setting it makes the loaders."""
        return self._shard_descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, shard_descriptor: ShardDescriptor) -> None:
        self._shard_descriptor = shard_descriptor
        self._train = self.make_train(shard_descriptor.get_dataset("train"))
        self._validation = self.make_validation(shard_descriptor.get_dataset("validation"))

    def get_train_loader(self, **kwargs: Any) -> Any:
        """Return the loader that training tasks get."""
        return self._train

    def get_valid_loader(self, **kwargs: Any) -> Any:
        """Return the loader that validation tasks get."""
        return self._validation

    def get_train_data_size(self) -> int:
        """Return the number of items that the client trains on."""
        return len(self._train)

    def get_valid_data_size(self) -> int:
        """Return the number of items that the client validates on."""
        return len(self._validation)
