import pytest
import torch
from torch import nn

from patchcert.training.config import TrainingConfig
from patchcert.training.optimizers import KernelMuon, make_optimizer, set_rate

RATE = 0.02


class Classifier(nn.Module):
    """As much of a classifier as an optimizer looks at."""

    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.positional = nn.Parameter(torch.zeros(3, 4, 4))


def network_with_gradients(memory_format):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, (1, 3)), nn.Linear(24, 5), nn.Linear(5, 2))
    network = nn.Sequential(*layers).to(memory_format=memory_format)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape)
    return network


def steps_of(network):
    optimizer = make_optimizer(Classifier(network), TrainingConfig(optimizer="muon", weight_decay=0.0))
    set_rate(optimizer, RATE)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kernels_step_along_orthogonal_matrices_and_all_else_along_adamw(memory_format):
    network = network_with_gradients(memory_format)
    steps = steps_of(network)
    kernels = ("0.weight", "2.weight", "3.weight")
    for name in kernels:
        step, gradient = steps[name].flatten(1), network.get_parameter(name).grad.flatten(1)
        # The iteration brings singular values near 1, not to 1.
        values = torch.linalg.svdvals(step) / RATE
        assert 0.6 < float(values.min()) and float(values.max()) < 1.3, name
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        nearest = -(left @ right)
        assert torch.cosine_similarity(step.flatten(), nearest.flatten(), dim=0) > 0.97, name
    for name in steps.keys() - set(kernels):
        # The first step of AdamW is the rate itself against the sign of the gradient.
        assert torch.allclose(steps[name], -RATE / 10 * network.get_parameter(name).grad.sign(), rtol=1e-3), name


def test_the_memory_format_changes_no_step():
    one, other = (steps_of(network_with_gradients(kind)) for kind in (torch.contiguous_format, torch.channels_last))
    for name, step in one.items():
        # The iteration runs in bfloat16, whose sums depend on the order of columns.
        assert torch.allclose(step, other[name], atol=RATE / 50), name


def test_kernels_without_a_gradient_stay():
    kernel = nn.Parameter(torch.ones(2, 3, 1, 1))
    optimizer = KernelMuon([kernel], lr=0.1)
    optimizer.step()
    assert (kernel == 1).all()


def test_zero_grad_forgets_all_gradients():
    network = network_with_gradients(torch.channels_last)
    make_optimizer(Classifier(network), TrainingConfig(optimizer="muon")).zero_grad()
    assert all(parameter.grad is None for parameter in network.parameters())


def test_output_layers_and_all_outside_the_networks_are_left_to_adamw():
    classifier = Classifier(*(network_with_gradients(torch.channels_last) for _ in range(3)))
    muon, adamw = make_optimizer(classifier, TrainingConfig(optimizer="muon")).param_groups
    expected = {id(member[-1].weight) for member in classifier.members} | {id(classifier.positional)}
    assert expected < {id(parameter) for parameter in adamw["params"]}
    assert len(muon["params"]) == 3 * 3
    assert len(muon["params"]) + len(adamw["params"]) == len(list(classifier.parameters()))
