"""Sizes of a node's shard, which bound what its updates and its metrics may weigh."""

import logging
from typing import Annotated

from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from pydantic import Field, TypeAdapter

from openfl_audio.protocol.messages import MAX_CLIPS

logger = logging.getLogger(__name__)

# The split that a task works on, by the type of the task.
SPLITS = {"train": "train", "validate": "validation"}
# What a split may count of each item besides, by the attribute that has the numbers, (items,).
COUNTED = {"frames": "num_frames", "labels": "num_labels"}
# Numbers by type of task and unit, such as {"train": {"clips": 118, "frames": 59000}}.
Sizes = dict[str, dict[str, Annotated[int, Field(ge=0, le=MAX_CLIPS)]]]
SIZES = TypeAdapter(Sizes)


def sizes_of(shard_descriptor: ShardDescriptor) -> Sizes:
    """Return the number of items of the shard's splits by type of task and unit.

    The units are "clips", and "frames" or "labels" where a split has `num_frames` or `num_labels`, shape (items,). A
    split that cannot be opened or counted has no size, and so no bound.
    """
    sizes: Sizes = {}
    for task_type, split in SPLITS.items():
        try:
            dataset = shard_descriptor.get_dataset(split)
            sizes[task_type] = {"clips": len(dataset)}
            for unit, attribute in COUNTED.items():
                if hasattr(dataset, attribute):
                    sizes[task_type][unit] = int(getattr(dataset, attribute).sum())
        except Exception as error:  # the site's own code may raise anything; tasks will say what is wrong
            logger.info("the split '%s' of the shard is not counted: %s: %s", split, type(error).__name__, error)
    return sizes
