"""The two small taggers of the FSD50K paper: patches of log-mel frames in, a logit for every class out.

This file is copied into exported models, so it imports nothing of this project.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn

FRAMES, N_MELS = 101, 96

Architecture = Literal["vgg", "vgg_code", "crnn", "crnn_joined"]
Normalisation = Literal["group", "evaluation_batch", "fedbn"]

# Scale and shift of the normalisation layers.
NORMALISATION_TENSORS = "*.norm.*"
GROUPS = 8


def create_tagger(
    architecture: Architecture, classes: int, normalisation: Normalisation = "group", width: float = 1.0, seed: int = 0
) -> "Tagger":
    """Return a tagger with weights that depend on `seed` only.

    `width` 0.25, 0.5 or 0.75 makes a small one, with that share of the channels and units. `normalisation` is

    group: by mean and variance of 8 groups of channels in each patch by itself (Wu & He, arXiv 1803.08494). A clip has
        the same scores alone as among others, so that the model may be taken home; advised for clients that differ by
        Hsieh et al. (arXiv 1910.00189).
    evaluation_batch: by mean and variance of the batch at hand, in evaluation too, as in Green & Plumbley's code: no
        running statistics, which would be means over clients that have nothing in common, ever travel. A clip's scores
        depend on the clips that are evaluated with it: those of a clip alone are much worse. It is there to compare
        with their results, not for a model that is to be used.
    fedbn: by the evaluation batch as well, with the same dependence, and scale and shift stay with their client (FedBN,
        Li et al., arXiv 2102.07623). Clients that train nothing, such as an evaluator, and the saved model have scale 1
        and shift 0: they are the shared weights as a new client would get them, not what a client achieves with its
        own.
    """
    kinds: dict[str, Callable[[int, Normalisation, float], Tagger]] = {
        "vgg": VggLike,
        "vgg_code": VggCode,
        "crnn": Crnn,
        "crnn_joined": CrnnJoined,
    }
    for name, value, known in (
        ("architecture", architecture, tuple(kinds)),
        ("normalisation", normalisation, get_args(Normalisation)),
        ("width", width, (0.25, 0.5, 0.75, 1.0)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: it should be one of {', '.join(map(str, known))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kinds[architecture](classes, normalisation, width)


class Tagger(nn.Module):
    """Patches float32 (batch, 101, 96), log-mel, to logits (batch, classes).

    A gain of the recording is a constant in log-mel, and tells recorders apart rather than sounds: every patch is
    centred, which takes no statistics of anybody's clips. The scale is left to the normalisation behind the first
    convolution.
    """

    centres = True
    convolution_bias = False  # it would be taken away by a normalisation over the batch

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.normalisation = normalisation

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        if patches.shape[1:] != (FRAMES, N_MELS):
            raise ValueError(f"patches have shape {tuple(patches.shape)}, the model wants (batch, {FRAMES}, {N_MELS})")
        centred = patches - patches.mean(dim=(1, 2), keepdim=True) if self.centres else patches
        # One channel, in the last place in memory: on a CPU the convolutions are twice as fast that way.
        return self.classify(centred.unsqueeze(-1).permute(0, 3, 1, 2))

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits for `images` (batch, 1, frames, mels)."""
        raise NotImplementedError

    def convolution(self, n_in: int, n_out: int, size: int) -> nn.Module:
        """Return a convolution with normalisation and ReLU; frames and bands keep their number."""
        norm: nn.Module
        if self.normalisation == "group":
            norm = GroupNorm(GROUPS, n_out)
        else:
            norm = nn.BatchNorm2d(n_out, track_running_stats=False)
        layers = nn.Sequential()
        layers.add_module("conv", nn.Conv2d(n_in, n_out, size, padding=size // 2, bias=self.convolution_bias))
        layers.add_module("norm", norm)
        layers.add_module("relu", nn.ReLU(inplace=True))
        return layers


class GroupNorm(nn.GroupNorm):
    """Group normalisation of images that lie channels-last in memory, by way of the usual order.

    PyTorch's own backward pass takes four times as long on channels-last images, on a CPU.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.contiguous()).contiguous(memory_format=torch.channels_last)


class VggLike(Tagger):
    """The VGG-like network of Fonseca et al. (arXiv 2010.00475): 265,640 parameters for 200 classes (0.27 M there).

    3x3 convolutions, three of 32 channels, two of 64 and one of 128, each group followed by 2x2 max pooling; maximum
    and mean over time and frequency side by side; a dense layer of 256 with ReLU; a dense layer. No dropout.
    """

    def __init__(self, classes: int, normalisation: Normalisation, width: float) -> None:
        super().__init__(normalisation)
        channels = [round(width * n) for n in (32, 64, 128)]
        layers: list[nn.Module] = []
        n_in = 1
        for n_out, repetitions in zip(channels, (3, 2, 1), strict=True):
            for _ in range(repetitions):
                layers.append(self.convolution(n_in, n_out, 3))
                n_in = n_out
            layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(2 * n_in, 2 * n_in)
        self.output = nn.Linear(2 * n_in, classes)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        features = self.convolutions(images)  # (batch, channels, 12, 12)
        pooled = torch.cat((features.amax(dim=(2, 3)), features.mean(dim=(2, 3))), dim=1)
        return self.output(self.activate(self.hidden(pooled)))

    def activate(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply what is between the two dense layers."""
        return torch.relu(hidden)


class VggCode(VggLike):
    """The VGG-like network as it is in Green & Plumbley's code: 265,992 parameters for 200 classes.

    Nothing is between its two dense layers, which together are one; its convolutions have biases; patches are not
    centred. With a store of --features power and the normalisation "evaluation_batch" it is theirs.
    """

    centres = False
    convolution_bias = True

    def activate(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class Crnn(Tagger):
    """The CRNN of Fonseca et al. (arXiv 2010.00475): 959,816 parameters for 200 classes (0.96 M there).

    Three 5x5 convolutions of 128 channels, with max pooling of (2, 5), (2, 4) and (2, 2) in (time, frequency); one
    bidirectional GRU of 64 units, whose last states of both directions are multiplied; a dense layer. No dropout.
    Multiplied, not joined, which would make it 0.97 M: as in the authors' PyTorch version (edufonseca/uclser20), but
    with the backward state that has seen all frames; theirs has seen one.
    """

    def __init__(self, classes: int, normalisation: Normalisation, width: float) -> None:
        super().__init__(normalisation)
        channels, units = round(128 * width), round(64 * width)
        layers: list[nn.Module] = []
        n_in = 1
        for pool in ((2, 5), (2, 4), (2, 2)):
            layers += [self.convolution(n_in, channels, 5), nn.MaxPool2d(pool)]
            n_in = channels
        self.convolutions = nn.Sequential(*layers)
        self.gru = nn.GRU(2 * channels, units, batch_first=True, bidirectional=True)
        self.output = nn.Linear(units, classes)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        features = self.convolutions(images)  # (batch, channels, 12, 2)
        steps = features.permute(0, 2, 3, 1).flatten(2)  # (batch, 12, 2 * channels)
        _, last = self.gru(steps)  # (directions, batch, units)
        return self.output(self.combine(last[0], last[1]))

    def combine(self, forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
        """Combine the last states of both directions, (batch, units) each."""
        return forward * backward


class CrnnJoined(Crnn):
    """The CRNN with the last states of both directions side by side: 972,616 parameters for 200 classes (0.97 M)."""

    def __init__(self, classes: int, normalisation: Normalisation, width: float) -> None:
        super().__init__(classes, normalisation, width)
        self.output = nn.Linear(2 * self.gru.hidden_size, classes)

    def combine(self, forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
        return torch.cat((forward, backward), dim=-1)
