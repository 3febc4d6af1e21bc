import itertools
import math

import numpy as np
import pytest
import torch

from workspaces.speech_enhancement.loss import (
    all_assignments,
    is_active,
    mixit_loss,
    pairwise_si_sdr,
    pit_loss,
    si_sdr,
    speech_assignments,
    supervised_loss,
)


def orthogonal(number: int, num_samples: int = 512) -> torch.Tensor:
    """Signals of power 1, without mean and orthogonal to each other: (number, samples)."""
    time = torch.arange(num_samples) / num_samples
    return torch.stack([math.sqrt(2) * torch.sin(2 * math.pi * (i + 1) * time) for i in range(number)])


def plain_si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    estimate, reference = estimate - estimate.mean(), reference - reference.mean()
    projection = estimate @ reference / (reference @ reference) * reference
    return 10 * math.log10(projection @ projection / ((estimate - projection) @ (estimate - projection)))


def random_signals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise_amplitude", [1.0, 0.1, 0.001])
def test_si_sdr_of_a_signal_with_orthogonal_noise_is_their_ratio(noise_amplitude):
    reference, noise = orthogonal(2)
    score = si_sdr(estimate=reference + noise_amplitude * noise, reference=reference)
    assert score.item() == pytest.approx(-20 * math.log10(noise_amplitude), abs=1e-3)


def test_si_sdr_knows_neither_scale_nor_mean():
    reference, estimate = random_signals(2, 400)
    score = si_sdr(estimate=estimate + reference, reference=reference)
    changed = si_sdr(estimate=-3 * (estimate + reference) + 7, reference=0.5 * reference - 2)
    assert changed.item() == pytest.approx(score.item(), abs=1e-4)
    assert score.item() == pytest.approx(plain_si_sdr((estimate + reference).numpy(), reference.numpy()), abs=1e-4)


def test_pairs_are_references_by_estimates():
    estimate, reference = random_signals(2, 3, 200), random_signals(2, 2, 200, seed=1)
    table = pairwise_si_sdr(estimate=estimate, reference=reference)
    assert table.shape == (2, 2, 3)
    for b, r, e in itertools.product(range(2), range(2), range(3)):
        assert table[b, r, e].item() == pytest.approx(
            plain_si_sdr(estimate[b, e].double().numpy(), reference[b, r].double().numpy()),
            abs=1e-3,  # at -40 dB what keeps the logarithm from 0 shows
        )


def test_pit_is_the_least_mean_over_permutations():
    reference = random_signals(4, 3, 200)
    estimate = reference[:, [2, 0, 1]] + random_signals(4, 3, 200, seed=1)
    expected = [
        min(
            -np.mean([plain_si_sdr(one[p].numpy(), reference[b, r].numpy()) for r, p in enumerate(permutation)])
            for permutation in itertools.permutations(range(3))
        )
        for b, one in enumerate(estimate)
    ]
    assert pit_loss(estimate=estimate, reference=reference).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_supervised_loss_tries_no_permutation_of_the_speech():
    speech, noise, other = orthogonal(3)
    leak = 0.1 * torch.stack([noise, speech, speech])  # 20 dB below
    reference = torch.stack([speech, noise, other])
    expected = -20 - 20  # of the speech, and the mean of the noises
    for order in ([0, 1, 2], [0, 2, 1]):
        estimate = (reference + leak)[order]
        assert supervised_loss(estimate=estimate[None], reference=reference[None]).item() == pytest.approx(
            expected, abs=0.1
        )
    swapped = (reference + leak)[[1, 0, 2]]
    assert supervised_loss(estimate=swapped[None], reference=reference[None]).item() > 0


@pytest.mark.parametrize(("num_sources", "num_mixtures"), [(4, 2), (3, 2), (3, 3), (2, 1)])
def test_mixit_is_the_least_loss_over_all_assignments(num_sources, num_mixtures):
    estimate = random_signals(3, num_sources, 300)
    mixtures = random_signals(3, num_mixtures, 300, seed=1) + estimate[:, :num_mixtures]
    expected = []
    for example, targets in zip(estimate.double().numpy(), mixtures.double().numpy(), strict=True):
        losses = []
        for owners in itertools.product(range(num_mixtures), repeat=num_sources):
            loss = 0.0
            for m, target in enumerate(targets):
                mine = [example[s] for s in range(num_sources) if owners[s] == m]
                # A mixture without a source is as bad as can be: -50 dB.
                loss -= max(-50.0, min(50.0, plain_si_sdr(sum(mine), target))) if mine else -50.0
            losses.append(loss)
        expected.append(min(losses))
    assignments = all_assignments(num_sources, num_mixtures)
    assert len(assignments) == num_mixtures**num_sources
    assert mixit_loss(estimate=estimate, mixtures=mixtures, assignments=assignments).tolist() == pytest.approx(
        expected, abs=1e-4
    )


def test_assignments_give_every_source_to_one_mixture_and_no_two_are_alike():
    assignments = all_assignments(4, 2)
    assert len({tuple(each.flatten().tolist()) for each in assignments}) == 16
    assert torch.equal(assignments.sum(dim=1), torch.ones(16, 4))


def test_with_speech_assignments_the_speech_stays_and_every_mixture_gets_one_noise():
    assert speech_assignments(2).tolist() == [[[1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 1, 0]]]
    assert speech_assignments(3).shape == (6, 3, 4)
    first, second, third = orthogonal(3)
    mixtures = torch.stack([first + second, third])[None]
    losses = [
        mixit_loss(estimate=torch.stack(order)[None], mixtures=mixtures, assignments=speech_assignments(2)).item()
        for order in itertools.permutations((first, second, third))
    ]
    # Perfect where the third signal is one of the noises; as the speech it cannot be parted from the first mixture.
    perfect = [abs(loss + 100) < 1e-6 for loss in losses]
    assert perfect == [order[0] is not third for order in itertools.permutations((first, second, third))]


def test_gradients_are_those_of_the_best_assignment():
    first, second, third = orthogonal(3)
    noise = 0.1 * random_signals(3, 512)
    estimate = (torch.stack([first, second, third]) + noise)[None].double().requires_grad_()
    mixtures = torch.stack([first + second, third])[None].double()
    mixit_loss(estimate=estimate, mixtures=mixtures, assignments=all_assignments(3, 2)).sum().backward()
    copy = estimate.detach().clone().requires_grad_()
    scores = si_sdr(estimate=copy[0, 0] + copy[0, 1], reference=mixtures[0, 0])
    (-scores - si_sdr(estimate=copy[0, 2], reference=mixtures[0, 1])).backward()
    torch.testing.assert_close(estimate.grad, copy.grad)


def test_a_silent_mixture_adds_nothing_and_pulls_at_nothing():
    first, second, third = orthogonal(3)
    estimate = (torch.stack([first, second, third]) + 0.1 * random_signals(3, 512))[None].requires_grad_()
    silent = torch.stack([first + second, torch.zeros(512)])[None]
    loss = mixit_loss(estimate=estimate, mixtures=silent, assignments=speech_assignments(2))
    alone = si_sdr(estimate=estimate[:, 0] + estimate[:, 1], reference=silent[:, 0])
    assert loss.item() == pytest.approx(-alone.item(), abs=1e-6)
    loss.sum().backward()
    assert torch.isfinite(estimate.grad).all()
    assert estimate.grad[0, 2].abs().max() == 0
    unheard = supervised_loss(estimate=estimate, reference=torch.zeros(1, 3, 512))
    assert unheard.item() == 0


def test_silence_is_less_than_a_step_of_16_bits():
    square = torch.ones(100)
    square[::2] = -1
    assert is_active(torch.stack([square / 32_768, square / 33_000, 0 * square])).tolist() == [True, False, False]


def test_solved_and_hopeless_examples_do_not_pull():
    reference, noise = orthogonal(2)
    for amplitude, expected in ((1e-4, -50.0), (1e4, 50.0)):
        estimate = (reference + amplitude * noise).requires_grad_()
        loss = pit_loss(estimate=estimate[None, None], reference=reference[None, None])
        loss.sum().backward()
        assert loss.item() == expected
        assert estimate.grad.abs().max() == 0


def test_an_estimate_of_silence_has_finite_gradients():
    estimate = torch.zeros(1, 3, 512, requires_grad=True)
    reference = orthogonal(3)[None]
    mixtures = torch.stack([reference[:, 0] + reference[:, 1], reference[:, 2]], dim=1)
    loss = mixit_loss(estimate=estimate, mixtures=mixtures, assignments=all_assignments(3, 2))
    (loss + supervised_loss(estimate=estimate, reference=reference)).sum().backward()
    assert torch.isfinite(estimate.grad).all()


def test_more_noises_than_references_are_chosen_among():
    torch.manual_seed(0)
    reference, estimate = torch.randn(2, 2, 400), torch.randn(2, 3, 400)
    estimate[:, 2] = reference[:, 0] + 0.1 * estimate[:, 2]
    scores = pairwise_si_sdr(estimate=estimate, reference=reference)  # (batch, references, estimates)
    expected = [
        min(-(scores[b, 0, i] + scores[b, 1, j]).item() / 2 for i, j in itertools.permutations(range(3), 2))
        for b in range(2)
    ]
    assert pit_loss(estimate=estimate, reference=reference).tolist() == pytest.approx(expected, rel=1e-6)


def test_with_more_sources_every_mixture_has_a_noise_and_the_speech_stays():
    assignments = speech_assignments(2, 5)
    assert assignments.shape == (2**4 - 2, 2, 5)
    assert (assignments.sum(dim=1) == 1).all()
    assert (assignments[:, 0, 0] == 1).all()
    assert (assignments[:, :, 1:].sum(dim=2) >= 1).all()
    assert len({tuple(each.flatten().tolist()) for each in assignments}) == len(assignments)
