"""SuDoRM-RF with group communication: a small network that separates a mixture into its sources.

This file is copied into exported models, so it imports nothing of this project.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

SAMPLE_RATE = 16_000
EPS = 1e-8
# On a CPU the tensors of one example stay in the cache, and small enough that malloc keeps their memory instead of
# handing it back to the system: whole batches of six take four times as long. An example here is four seconds.
CPU_CHUNK_SAMPLES = 64_000

# Parts of names in FedEnhance's published code, and what they are called here: all of them, and those within a block.
PUBLISHED_NAMES = {"ln.": "norm.", "sm.": "blocks.", "mask_net.": "masks."}
PUBLISHED_BLOCK_NAMES = {
    "TAC.TAC_input": "0.transform",
    "TAC.TAC_mean": "0.average",
    "TAC.TAC_output.0": "0.concatenate",
    "TAC.TAC_output.1": "0.finish.0",
    "TAC.TAC_norm": "0.finish.1",
    "UBlock.proj_1x1.conv": "1.expand.0",
    "UBlock.proj_1x1.norm": "1.expand.1",
    "UBlock.proj_1x1.act": "1.expand.2",
    "UBlock.spp_dw": "1.levels",
    "UBlock.final_norm.norm": "1.reduce.0",
    "UBlock.final_norm.act": "1.reduce.1",
    "UBlock.res_conv": "1.reduce.2",
    ".conv.": ".0.",
    ".norm.": ".1.",
}


class Sizes(Protocol):
    """The sizes of a model, under their published names."""

    out_channels: int
    in_channels: int
    num_blocks: int
    upsampling_depth: int
    kernel_size: int
    num_bases: int
    num_groups: int
    num_sources: int


class SudoRmRf(nn.Module):
    """Encoder, masks from U-shaped blocks on groups of channels, decoder.

    Tzinis et al., "Compute and memory efficient universal sound source separation", arXiv 2103.02644; the groups are
    those of Luo et al., "Group communication with context codec for lightweight source separation", arXiv 2012.07291.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        s = sizes
        self.sizes = sizes
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
        groups = x.view(batch * self.sizes.num_groups, -1, frames)
        masks = self.masks(self.blocks(groups).view(batch, channels, frames))
        masked = masks.view(batch, self.sizes.num_sources, -1, frames) * encoded.unsqueeze(1)
        return self.decoder(masked.flatten(1, 2))[..., :num_samples]

    def separate(self, mixture: torch.Tensor) -> torch.Tensor:
        """Separate waveforms (batch, samples) of any level into estimates (batch, sources, samples) that add up to it.

        The first source is the speech; the others are noises.
        """
        deviation, mean = torch.std_mean(mixture, dim=-1, keepdim=True)
        standard = (mixture - mean) / (deviation + EPS)
        estimate = make_consistent(self(standard), standard)
        return estimate * (deviation + EPS).unsqueeze(1) + mean.unsqueeze(1) / estimate.shape[1]

    def read_published(self, published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of FedEnhance's model, weights or gradients, by the names that they have here.

        Its linear layers are convolutions here. Tensors that are named as here stay as they are.
        """
        own = {name: tensor.shape for name, tensor in self.state_dict().items()}
        named = {own_name(name): tensor for name, tensor in published.items()}
        return {
            name: tensor.reshape(own[name]) if name in own and own[name].numel() == tensor.numel() else tensor
            for name, tensor in named.items()
        }


def own_name(published: str) -> str:
    """Return the name that a parameter of the published model has in this one.

    >>> own_name("sm.3.UBlock.spp_dw.0.norm.gamma")
    'blocks.3.1.levels.0.1.weight'
    """
    name = published.replace(".gamma", ".weight").replace(".beta", ".bias")
    for theirs, ours in PUBLISHED_NAMES.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    if name.startswith("blocks."):
        for theirs, ours in PUBLISHED_BLOCK_NAMES.items():
            name = name.replace(theirs, ours)
    return name


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


def create_sudormrf(sizes: Sizes, seed: int = 0) -> SudoRmRf:
    """Return a model from a random start that depends on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SudoRmRf(sizes)


def chunk_size(num_samples: int, batch_size: int, device: str) -> int:
    """Return how many examples of `num_samples` to put through the model at a time: see CPU_CHUNK_SAMPLES.

    >>> chunk_size(64_000, 6, "cpu"), chunk_size(16_000, 6, "cpu"), chunk_size(64_000, 6, "cuda")
    (1, 4, 6)
    """
    if device != "cpu":
        return batch_size
    return min(batch_size, math.ceil(CPU_CHUNK_SAMPLES / num_samples))
