import torch

from openfl_audio.training.proximal import ProximalTerm


def test_the_gradient_of_the_term_is_mu_times_the_distance():
    moved, still = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    term = ProximalTerm([moved, still], mu=0.5)
    with torch.no_grad():
        moved += torch.tensor([2.0, -4.0])
    moved.grad, still.grad = torch.ones(2), torch.ones(2)
    term.add_gradients()
    assert moved.grad.tolist() == [2.0, -1.0]
    assert still.grad.tolist() == [1.0, 1.0]


def test_a_parameter_without_a_gradient_keeps_none_and_mu_0_changes_nothing():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    dropped = ProximalTerm([parameter], mu=1.0)
    dropped.add_gradients()
    assert parameter.grad is None
    nothing = ProximalTerm([parameter], mu=0.0)
    parameter.grad = torch.ones(1)
    with torch.no_grad():
        parameter.fill_(torch.inf)  # of which 0 times would be NaN
    nothing.add_gradients()
    assert parameter.grad.tolist() == [1.0]
