from torch import nn
from torch.nn.utils import skip_init

from reference.testbeds.flops import forward_flops


def test_each_multiplication_and_addition_counts_and_the_mode_stays():
    layers = skip_init(nn.Conv2d, 1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), skip_init(nn.Linear, 3 * 16, 5)
    model = nn.Sequential(*layers)
    assert forward_flops(model, 4) == 2 * (3 * 16 * 9 + 5 * 48)
    assert model.training
