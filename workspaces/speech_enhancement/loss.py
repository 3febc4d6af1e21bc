"""Losses of separation: supervised, and from mixtures of mixtures. Of every loss lower is better; SI-SDR is a score.

All signals are float32 (batch, signals, samples), and every loss is float64 (batch,), one for each example.
"""

import itertools

import torch

EPS = 1e-8
# Beyond this an example that is hopeless, or solved, does not pull at the weights.
LIMIT_DB = 50.0
# A reference counts as silent below the power of one step of 16-bit audio, -90 dBFS. In FedEnhance's code, where
# waveforms are 16-bit integers and the mixture has variance 1, that is one less than 0.001 dB above the mixture.
SILENT_POWER = (1 / 32_768) ** 2


def si_sdr(*, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the scale-invariant signal-to-distortion ratio in dB, without regard to means; higher is better.

    10 log10(|a r|^2 / |a r - e|^2) of an estimate e and a reference r, where a r is the projection of e onto r: Le Roux
    et al., arXiv 1811.02508. (..., samples) twice to float64 (...). A silent reference gives -80 dB.
    """
    estimate, reference = _centred(estimate), _centred(reference)
    return _si_sdr((estimate**2).sum(-1), (estimate * reference).sum(-1), (reference**2).sum(-1))


def pairwise_si_sdr(*, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the SI-SDR in dB of each estimate for each reference: (batch, references, estimates)."""
    estimate, reference = _centred(estimate), _centred(reference)
    powers = (estimate**2).sum(-1).unsqueeze(1)
    return _si_sdr(powers, reference @ estimate.mT, (reference**2).sum(-1, keepdim=True))


def pit_loss(*, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the mean negative SI-SDR over the references, in the choice of an estimate for each that makes it least.

    Kolbæk et al., "Multitalker speech separation with utterance-level permutation invariant training of deep recurrent
    neural networks", arXiv 1703.06284. There are at least as many estimates as references, and each is chosen once at
    most. Each SI-SDR is clamped; a silent reference adds 0.
    """
    losses = _loss_of(pairwise_si_sdr(estimate=estimate, reference=reference), is_active(reference).unsqueeze(-1))
    number = reference.shape[1]
    choices = itertools.permutations(range(estimate.shape[1]), number)
    permutations = torch.tensor(list(choices), device=losses.device)
    rows = torch.arange(number, device=losses.device)
    return losses[:, rows, permutations].mean(-1).amin(-1)


def supervised_loss(*, estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the negative SI-SDR of speech, the first source, and of noises in their best permutation: FedEnhance."""
    speech = si_sdr(estimate=estimate[:, 0], reference=reference[:, 0])
    noises = pit_loss(estimate=estimate[:, 1:], reference=reference[:, 1:])
    return _loss_of(speech, is_active(reference[:, 0])) + noises


def mixit_loss(*, estimate: torch.Tensor, mixtures: torch.Tensor, assignments: torch.Tensor) -> torch.Tensor:
    """Return the loss of mixture invariant training: the mixtures' negative SI-SDR, under the best of the assignments.

    Wisdom et al., "Unsupervised sound separation using mixture invariant training", arXiv 2006.12701.
    `estimate` are sources of the sum of `mixtures` (batch, mixtures, samples); `assignments` (assignments, mixtures,
    sources) says with 1 and 0 which sources make up which mixture. Each SI-SDR is clamped; a silent mixture adds 0.
    """
    active = is_active(mixtures)
    estimate, mixtures = _centred(estimate), _centred(mixtures)
    chosen = assignments.to(estimate)
    # SI-SDR is a function of inner products, and those of sums are sums: no assignment needs waveforms of its own.
    powers = torch.einsum("ams,amt,bst->bam", chosen, chosen, estimate @ estimate.mT)
    products = torch.einsum("ams,bms->bam", chosen, mixtures @ estimate.mT)
    scores = _si_sdr(powers, products, (mixtures**2).sum(-1).unsqueeze(1))  # (batch, assignments, mixtures)
    return _loss_of(scores, active.unsqueeze(1)).sum(-1).amin(-1)


def all_assignments(num_sources: int, num_mixtures: int) -> torch.Tensor:
    """Return all ways to mix, a source in one mixture each: 0 and 1, float32 (mixtures ** sources, mixtures, sources).

    >>> all_assignments(4, 2).shape
    torch.Size([16, 2, 4])
    """
    owners = torch.cartesian_prod(*[torch.arange(num_mixtures)] * num_sources).view(-1, num_sources)
    return (owners.unsqueeze(1) == torch.arange(num_mixtures).view(1, -1, 1)).float()


def speech_assignments(num_mixtures: int, num_sources: int | None = None) -> torch.Tensor:
    """Return FedEnhance's assignments: the first source, speech, to the first mixture, and a noise to each mixture.

    float32 (assignments, mixtures, sources), of 0 and 1. With more sources than 1 + mixtures, a mixture may have
    several noises, and has one at least.

    >>> speech_assignments(2).tolist()
    [[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]
    >>> len(speech_assignments(2, num_sources=4))
    6
    """
    noises = all_assignments((num_sources or 1 + num_mixtures) - 1, num_mixtures)
    noises = noises[(noises.sum(dim=2) > 0).all(dim=1)]
    speech = torch.zeros(len(noises), num_mixtures, 1)
    speech[:, 0] = 1
    return torch.cat([speech, noises], dim=2)


def is_active(reference: torch.Tensor) -> torch.Tensor:
    """Tell whether a waveform is more than silence: (..., samples) to bool (...)."""
    return (reference**2).mean(-1) >= SILENT_POWER


def _centred(signal: torch.Tensor) -> torch.Tensor:
    # In float32 the residual of a good estimate, as a difference of powers, would be rounding error.
    signal = signal.double()
    return signal - signal.mean(-1, keepdim=True)


def _si_sdr(power: torch.Tensor, product: torch.Tensor, reference_power: torch.Tensor) -> torch.Tensor:
    """Return the SI-SDR in dB of |e|^2, <e, r> and |r|^2."""
    target = product**2 / (reference_power + EPS)
    distortion = (power - target).clamp(min=0)
    return 10 * torch.log10(target / (distortion + EPS) + EPS)


def _loss_of(si_sdr_db: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    return active * -si_sdr_db.clamp(-LIMIT_DB, LIMIT_DB)
