import json

import pytest
import torch

from workspaces.sound_events.export import load_model, save_tagger
from workspaces.sound_events.loss import binary_cross_entropy
from workspaces.sound_events.model import GroupNorm, create_tagger

ARCHITECTURES = ("vgg", "crnn", "crnn_joined")
ALL = (*ARCHITECTURES, "vgg_code")


def patches(number: int, seed: int = 0) -> torch.Tensor:
    """Like log-mel: around -5."""
    return torch.randn(number, 101, 96, generator=torch.Generator().manual_seed(seed)) - 5


def count_parameters(convolutions, recurrent, dense) -> int:
    """Count the parameters of (in, out, size) convolutions with scale and shift, (in, units) bidirectional GRUs
    and (in, out) dense layers.
    """
    parameters = sum(i * o * size**2 + 2 * o for i, o, size in convolutions)
    parameters += sum(2 * 3 * (i * units + units**2 + 2 * units) for i, units in recurrent)
    return parameters + sum(i * o + o for i, o in dense)


def test_parameters_are_counted_as_in_the_paper():
    vgg = count_parameters(
        [(1, 32, 3), (32, 32, 3), (32, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 3)], [], [(256, 256), (256, 200)]
    )
    crnn = count_parameters([(1, 128, 5), (128, 128, 5), (128, 128, 5)], [(256, 64)], [(64, 200)])
    kinds = (("vgg", vgg, 0.27e6), ("crnn", crnn, 0.96e6), ("crnn_joined", crnn + 64 * 200, 0.97e6))
    for architecture, expected, published in kinds:
        for normalisation in ("group", "evaluation_batch", "fedbn"):
            model = create_tagger(architecture, 200, normalisation)
            assert sum(parameter.numel() for parameter in model.parameters()) == expected
        assert round(expected, -4) == published


def conv(x, model, layer, **pool):
    """A convolution with normalisation over the batch, ReLU and pooling, from the layer's own weights."""
    weights = model.convolutions[layer]
    x = torch.conv2d(x, weights.conv.weight, padding=weights.conv.weight.shape[-1] // 2)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    x = torch.relu((x - mean) / torch.sqrt(var + 1e-5))
    return torch.max_pool2d(x, **pool) if pool else x


def centred(x):
    return (x - x.mean((1, 2), keepdim=True))[:, None]


def test_the_vgg_like_network_is_what_the_paper_describes():
    model, x = create_tagger("vgg", 5, "evaluation_batch"), centred(patches(3))
    for layer in (0, 1):
        x = conv(x, model, layer)
    x = conv(x, model, 2, kernel_size=2)
    x = conv(x, model, 4)
    x = conv(x, model, 5, kernel_size=2)
    x = conv(x, model, 7, kernel_size=2)
    assert x.shape == (3, 128, 12, 12)
    x = torch.cat((x.flatten(2).max(-1).values, x.flatten(2).mean(-1)), 1)
    x = torch.relu(x @ model.hidden.weight.T + model.hidden.bias)
    expected = x @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model(patches(3)), expected, rtol=1e-4, atol=1e-5)


def test_the_vgg_of_the_code_has_biases_and_nothing_between_its_dense_layers():
    model = create_tagger("vgg_code", 200, "evaluation_batch")
    biases = 3 * 32 + 2 * 64 + 128
    assert sum(parameter.numel() for parameter in model.parameters()) == 265_640 + biases
    pooled = {}
    model.hidden.register_forward_hook(lambda module, inputs, output: pooled.update(inputs=inputs[0]))
    logits = model(patches(3))
    weight = model.output.weight @ model.hidden.weight
    bias = model.output.weight @ model.hidden.bias + model.output.bias
    torch.testing.assert_close(logits, pooled["inputs"] @ weight.T + bias, rtol=1e-4, atol=1e-5)
    # The biases are there to be trained, and a normalisation over the batch takes them away.
    with torch.no_grad():
        model.convolutions[0].conv.bias += 1
    torch.testing.assert_close(model(patches(3)), logits, rtol=1e-3, atol=1e-4)
    seen = []
    model.convolutions.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(patches(1))
    torch.testing.assert_close(seen[0][0, 0], patches(1)[0])


@pytest.mark.parametrize(
    ("architecture", "combine"), [("crnn", torch.mul), ("crnn_joined", lambda *states: torch.cat(states, 1))]
)
def test_the_crnn_is_what_the_paper_describes(architecture, combine):
    model, x = create_tagger(architecture, 5, "evaluation_batch"), centred(patches(2))
    for layer, pool in ((0, (2, 5)), (2, (2, 4)), (4, (2, 2))):
        x = conv(x, model, layer, kernel_size=pool)
    assert x.shape == (2, 128, 12, 2)
    steps = torch.cat((x[..., 0], x[..., 1]), 1).transpose(1, 2)  # of each of 12 frames, two bands of 128 channels
    cells = [torch.nn.GRUCell(256, 64) for _ in range(2)]
    states = [torch.zeros(2, 64), torch.zeros(2, 64)]
    for direction, (cell, suffix) in enumerate(zip(cells, ("", "_reverse"), strict=True)):
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, kind).data = getattr(model.gru, f"{kind}_l0{suffix}").data
        for step in range(12) if direction == 0 else reversed(range(12)):
            states[direction] = cell(steps[:, step], states[direction])
    expected = combine(*states) @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model(patches(2)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gain_of_the_recording_changes_nothing(architecture):
    model = create_tagger(architecture, 5, "group", width=0.25)
    torch.testing.assert_close(model(patches(2)), model(patches(2) + 3.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_group_normalisation_is_that_of_pytorch_whatever_the_order_in_memory(order):
    torch.manual_seed(0)
    ours, theirs = GroupNorm(4, 8), torch.nn.GroupNorm(4, 8)
    images = torch.randn(2, 8, 5, 7).contiguous(memory_format=order)
    gradients = []
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": torch.arange(8.0), "bias": torch.ones(8)})
        inputs = images.clone().requires_grad_()
        norm(inputs).square().sum().backward()
        gradients.append([inputs.grad, norm.weight.grad, norm.bias.grad])
    torch.testing.assert_close(ours(images), theirs(images))
    # Gradients that nearly cancel out: float32 sums in another order differ by some 1e-5 of the largest term.
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-3)


def test_group_normalisation_leaves_a_patch_to_itself_and_the_batchs_does_not():
    for normalisation, alike in (("group", True), ("evaluation_batch", False), ("fedbn", False)):
        model = create_tagger("vgg", 5, normalisation, width=0.25).eval()
        together, alone = model(patches(4))[:1], model(patches(4)[:1])
        assert torch.allclose(together, alone, atol=1e-5) == alike


@pytest.mark.parametrize("architecture", ALL)
def test_one_patch_is_enough_for_a_training_step(architecture):
    for normalisation in ("group", "evaluation_batch"):
        model = create_tagger(architecture, 5, normalisation, width=0.25).train()
        binary_cross_entropy(model(patches(1)), torch.ones(1, 5)).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("normalisation", ["group", "evaluation_batch"])
def test_nothing_but_parameters_travels(normalisation):
    model = create_tagger("vgg", 5, normalisation)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_weights_depend_on_the_seed_only_and_the_random_state_stays():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = create_tagger("crnn", 5, width=0.25, seed=1)
    assert torch.rand(1) == expected
    same, other = (create_tagger("crnn", 5, width=0.25, seed=seed) for seed in (1, 2))
    assert torch.equal(first.output.weight, same.output.weight)
    assert not torch.equal(first.output.weight, other.output.weight)


@pytest.mark.parametrize("architecture", ALL)
def test_a_saved_model_comes_back_from_its_folder(architecture, tmp_path):
    recipe = {"architecture": architecture, "classes": 5, "normalisation": "group", "width": 0.25}
    model = create_tagger(**recipe, seed=3)
    save_tagger(model, recipe, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text()).items() >= recipe.items()
    torch.testing.assert_close(load_model(tmp_path / "model")(patches(2)), model(patches(2)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet"}, "architecture is 'resnet': it should be one of vgg, vgg_code, crnn, crnn_joined"),
        ({"normalisation": "layer"}, "normalisation is 'layer': it should be one of group, evaluation_batch, fedbn"),
        ({"width": 0.3}, "width is 0.3: it should be one of 0.25, 0.5, 0.75, 1.0"),
    ],
)
def test_a_model_that_does_not_exist_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        create_tagger(**{"architecture": "vgg", "classes": 5} | change)


def test_patches_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"patches have shape \(2, 96, 101\), the model wants \(batch, 101, 96\)"):
        create_tagger("vgg", 5)(torch.zeros(2, 96, 101))


def test_the_loss_is_its_formula():
    logits, labels = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    p = 1 / (1 + torch.exp(-logits))
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(binary_cross_entropy(logits, labels), expected)
    torch.testing.assert_close(binary_cross_entropy(torch.zeros(3, 2), torch.ones(3, 2)), torch.tensor(2.0).log())
