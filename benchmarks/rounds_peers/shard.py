"""The envoys' data: a few items nobody looks at. Apart from the workloads, as an idle envoy must not load torch."""

from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

TEMPLATE = f"{__name__}.FewItemsShardDescriptor"
ITEMS = 4


class FewItems(ShardDataset):
    """A number of items, each of which is its own index."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def __len__(self) -> int:
        return self.n_items

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, index


class FewItemsShardDescriptor(ShardDescriptor):
    """The shard of an envoy that has `n_items` items to train and to validate on."""

    def __init__(self, n_items: int = ITEMS) -> None:
        self.n_items = n_items

    def get_dataset(self, dataset_type: str) -> FewItems:
        """Return the items, which are the same for every `dataset_type`."""
        return FewItems(self.n_items)

    @property
    def sample_shape(self) -> list[str]:
        """Return the shape of an item."""
        return ["1"]

    @property
    def target_shape(self) -> list[str]:
        """Return the shape of a target."""
        return ["1"]

    @property
    def dataset_description(self) -> str:
        """Return the number of items in words."""
        return f"{self.n_items} items"
