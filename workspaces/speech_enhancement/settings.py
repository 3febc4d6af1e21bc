"""The sizes of a SuDoRM-RF as settings."""

from pydantic import Field, ValidationInfo, field_validator

from openfl_audio.training.run_settings import Group


class SudoRmRfSettings(Group):
    """The published names of the sizes; the defaults are FedEnhance's model, of 794,921 parameters.

    `out_channels` between the blocks and `in_channels` within them are shared out among `num_groups` groups.
    `num_sources` are speech and two noises or more, or speech and all noise, which takes clean speech to learn.
    """

    out_channels: int = Field(default=256, ge=1, description="channels between the blocks")
    in_channels: int = Field(default=512, ge=1, description="channels within the blocks")
    num_blocks: int = Field(default=8, ge=1, description="number of blocks")
    upsampling_depth: int = Field(default=5, ge=1, description="scales of a block")
    kernel_size: int = Field(default=41, ge=5, description="samples of a filter of the encoder; odd")
    num_bases: int = Field(default=512, ge=1, description="filters of the encoder")
    num_groups: int = Field(
        default=16, ge=1, validate_default=True, description="groups that the channels are shared out among"
    )
    num_sources: int = Field(
        default=3, ge=2, description="estimates of the model: speech and two noises or more; 2 are speech and all noise"
    )

    @field_validator("kernel_size")
    @classmethod
    def check_kernel(cls, kernel_size: int) -> int:
        if kernel_size % 2 == 0:
            raise ValueError("it should be odd, as half of it is the hop")
        return kernel_size

    @field_validator("num_groups")
    @classmethod
    def check_groups(cls, num_groups: int, info: ValidationInfo) -> int:
        for name in {"out_channels", "in_channels"} & info.data.keys():
            if info.data[name] % num_groups:
                raise ValueError(f"it should divide {name}, which is {info.data[name]}")
        return num_groups
