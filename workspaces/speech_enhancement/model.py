"""SuDoRM-RF with group communication: a small network that separates a mixture into its sources."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from safetensors.torch import load_file, save_file
from torch import nn

from openfl_audio.files import write_json
from openfl_audio.training.run_settings import Group

SAMPLE_RATE = 16_000
EPS = 1e-8
# On a CPU the tensors of one example stay in the cache, and small enough that malloc keeps their memory instead of
# handing it back to the system: whole batches of six take four times as long. An example here is four seconds.
CPU_CHUNK_SAMPLES = 64_000


class SudoRmRfSettings(Group):
    """The published names of the sizes; the defaults are FedEnhance's model, of 794,921 parameters.

    `out_channels` between the blocks and `in_channels` within them are shared out among `num_groups` groups.
    """

    out_channels: int = Field(default=256, ge=1)
    in_channels: int = Field(default=512, ge=1)
    num_blocks: int = Field(default=8, ge=1)
    upsampling_depth: int = Field(default=5, ge=1)
    kernel_size: int = Field(default=41, ge=5)
    num_bases: int = Field(default=512, ge=1)
    num_groups: int = Field(default=16, ge=1, validate_default=True)
    num_sources: int = Field(default=3, ge=2)

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


class SudoRmRf(nn.Module):
    """Encoder, masks from U-shaped blocks on groups of channels, decoder.

    Tzinis et al., "Compute and memory efficient universal sound source separation", arXiv 2103.02644; the groups are
    those of Luo et al., "Group communication with context codec for lightweight source separation", arXiv 2012.07291.
    """

    def __init__(self, settings: SudoRmRfSettings) -> None:
        super().__init__()
        s = settings
        self.settings = settings
        self.hop = s.kernel_size // 2
        # Every halving within a block must come out even.
        self.multiple = self.hop * 2 ** (s.upsampling_depth - 1)
        self.encoder = nn.Conv1d(1, s.num_bases, s.kernel_size, stride=self.hop, padding=self.hop, bias=False)
        self.norm = global_norm(s.num_bases)
        self.bottleneck = nn.Conv1d(s.num_bases, s.out_channels, 1)
        channels, hidden = s.out_channels // s.num_groups, s.in_channels // s.num_groups
        self.blocks = nn.Sequential()
        for _ in range(s.num_blocks):
            communication = GroupCommunication(channels, s.out_channels * 3 // s.num_groups, s.num_groups)
            self.blocks.append(nn.Sequential(communication, UBlock(channels, hidden, s.upsampling_depth)))
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(s.out_channels, s.num_sources * s.num_bases, 1), nn.ReLU())
        self.decoder = nn.ConvTranspose1d(
            s.num_sources * s.num_bases,
            s.num_sources,
            s.kernel_size,
            stride=self.hop,
            padding=self.hop,
            output_padding=self.hop - 1,
            bias=False,
        )
        nn.init.xavier_uniform_(self.encoder.weight)
        nn.init.xavier_uniform_(self.decoder.weight)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Separate mixtures (batch, samples), of mean 0, variance 1 and any length, into (batch, sources, samples)."""
        num_samples = waveform.shape[-1]
        padded = F.pad(waveform, (0, -num_samples % self.multiple))
        encoded = self.encoder(padded.unsqueeze(1))  # (batch, bases, frames)
        x = self.bottleneck(self.norm(encoded))
        batch, channels, frames = x.shape
        groups = x.view(batch * self.settings.num_groups, -1, frames)
        masks = self.masks(self.blocks(groups).view(batch, channels, frames))
        masked = masks.view(batch, self.settings.num_sources, -1, frames) * encoded.unsqueeze(1)
        return self.decoder(masked.flatten(1, 2))[..., :num_samples]

    def separate(self, mixture: torch.Tensor) -> torch.Tensor:
        """Separate waveforms (batch, samples) of any level into estimates (batch, sources, samples) that add up to it.

        The first source is the speech; the others are noises.
        """
        deviation, mean = torch.std_mean(mixture, dim=-1, keepdim=True)
        standard = (mixture - mean) / (deviation + EPS)
        estimate = make_consistent(self(standard), standard)
        return estimate * (deviation + EPS).unsqueeze(1) + mean.unsqueeze(1) / estimate.shape[1]


class GroupCommunication(nn.Module):
    """Transform, average, concatenate: each of the groups learns from the mean of all of them, frame by frame.

    Groups (batch * groups, channels, frames) to the same shape; arXiv 2012.07291.
    """

    def __init__(self, channels: int, hidden: int, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.transform = nn.Sequential(nn.Conv1d(channels, hidden, 1), nn.PReLU())
        self.average = nn.Sequential(nn.Conv1d(hidden, hidden, 1), nn.PReLU())
        self.concatenate = nn.Conv1d(2 * hidden, channels, 1)
        self.finish = nn.Sequential(nn.PReLU(), global_norm(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = self.transform(x)
        mean = self.average(own.unflatten(0, (-1, self.num_groups)).mean(1))  # (batch, hidden, frames)
        # A product with concatenated columns is a sum of two products, and that of the mean is the same in all groups.
        for_own, for_mean = self.concatenate.weight.chunk(2, dim=1)
        own, mean = F.conv1d(own, for_own, self.concatenate.bias), F.conv1d(mean, for_mean)
        joined = own.unflatten(0, (-1, self.num_groups)) + mean.unsqueeze(1)
        return x + self.finish(joined.flatten(0, 1))


class UBlock(nn.Module):
    """Successive down-sampling of groups, and the sum of all resolutions; arXiv 2103.02644.

    (batch, channels, frames) to the same shape; frames are a multiple of 2 ** (depth - 1).
    """

    def __init__(self, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv1d(channels, hidden, 1), global_norm(hidden), nn.PReLU())
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(hidden, hidden, 5, stride=2 if level else 1, padding=2, groups=hidden), global_norm(hidden)
            )
            for level in range(depth)
        )
        self.reduce = nn.Sequential(global_norm(hidden), nn.PReLU(), nn.Conv1d(hidden, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        resolutions = [self.expand(x)]
        for level in self.levels:
            resolutions.append(level(resolutions[-1]))
        total = resolutions.pop()
        for finer in reversed(resolutions[1:]):
            # Every frame of the coarser level counts for two of the finer one.
            total = (finer.unflatten(-1, (-1, 2)) + total.unsqueeze(-1)).flatten(-2)
        return x + self.reduce(total)


def global_norm(channels: int) -> nn.GroupNorm:
    """Normalize over all channels and frames of an example, with a gain and a bias for each channel.

    It is that of Conv-TasNet, arXiv 1809.07454.
    """
    return nn.GroupNorm(1, channels, eps=EPS)


def make_consistent(estimate: torch.Tensor, mixture: torch.Tensor) -> torch.Tensor:
    """Spread evenly over the sources what is missing from their sum: Wisdom et al., arXiv 1811.08521.

    `estimate` (batch, sources, samples) and `mixture` (batch, samples) to (batch, sources, samples).
    """
    missing = mixture - estimate.sum(dim=1)
    return estimate + missing.unsqueeze(1) / estimate.shape[1]


def create_sudormrf(settings: SudoRmRfSettings, seed: int = 0) -> SudoRmRf:
    """Return a model from a random start that depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SudoRmRf(settings)


def save_sudormrf(model: SudoRmRf, folder: Path) -> None:
    """Write model.safetensors, and config.json with the model's settings, for `load_sudormrf`."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "model.partial"
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)
    write_json(folder / "config.json", model.settings.model_dump())
    temporary.rename(folder / "model.safetensors")


def load_sudormrf(folder: str | Path) -> SudoRmRf:
    """Load the model that `save_sudormrf` wrote."""
    settings = SudoRmRfSettings.model_validate_json((Path(folder) / "config.json").read_text(encoding="utf-8"))
    model = SudoRmRf(settings)
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model


def chunk_size(num_samples: int, batch_size: int, device: str) -> int:
    """Return how many examples of `num_samples` to put through the model at a time: see CPU_CHUNK_SAMPLES.

    >>> chunk_size(64_000, 6, "cpu"), chunk_size(16_000, 6, "cpu"), chunk_size(64_000, 6, "cuda")
    (1, 4, 6)
    """
    if device != "cpu":
        return batch_size
    return min(batch_size, math.ceil(CPU_CHUNK_SAMPLES / num_samples))
