"""The character model with mixtures of experts in place of its MLPs, and the dense model of equal active cost."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from reference.testbeds.char_lm import CharLM, Config
from reference.testbeds.seeding import empty_linear
from reference.testbeds.text import Corpus


@dataclass(frozen=True)
class Mixture:
    """What shapes one layer of experts. `balance` weighs the load-balance loss; it is left out of validation losses."""

    experts: int = 16
    top_k: int = 2
    hidden: int = 128
    balance: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k must lie in 1..{self.experts}, the number of experts, not {self.top_k}")


@dataclass(frozen=True)
class Routes:
    """Where tokens go: router logits [tokens, experts], the chosen experts and their gates [tokens, k].

    An expert whose gate is 0 need not be called.
    """

    logits: Tensor
    chosen: Tensor
    gates: Tensor


def top_k_gates(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k experts with the largest logits and their gates, a softmax over these k alone: both [tokens, k].

    With k = 1 that softmax would be 1 whatever the logits and leave the router without a gradient, so the gate is the
    expert's probability among all (Fedus et al. 2021, arXiv 2101.03961, equation 2).
    """
    top, chosen = logits.topk(k)
    return chosen, top.softmax(-1) if k > 1 else logits.softmax(-1).gather(-1, chosen)


def balance_loss(routes: Routes) -> Tensor:
    """E sum_e f_e P_e: f_e the share of calls that expert e gets, P_e its mean probability. 1 when both are uniform."""
    experts = routes.logits.shape[-1]
    share = torch.bincount(routes.chosen.flatten(), minlength=experts) / routes.chosen.numel()
    return experts * (share * routes.logits.softmax(-1).mean(0)).sum()


class Gate(nn.Module):
    """The router: logits x W^T and the top k of them."""

    def __init__(self, width: int, mixture: Mixture):
        super().__init__()
        self.top_k = mixture.top_k
        self.weight = nn.Parameter(torch.empty(mixture.experts, width))

    def forward(self, x: Tensor) -> Routes:
        """[tokens, width] -> routes."""
        logits = x @ self.weight.T
        return Routes(logits, *top_k_gates(logits, self.top_k))


class Bank(nn.Module):
    """One matrix for each expert, [experts, inputs, outputs]."""

    def __init__(self, experts: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, inputs, outputs))


class MoE(nn.Module):
    """y = sum over the chosen e of gate_e down_e(GELU(up_e(x))), without biases.

    `gate` may be replaced by any module from tokens to `Routes`. `balance` is the balance loss of the last call in
    training mode.
    """

    def __init__(self, width: int, mixture: Mixture):
        super().__init__()
        self.gate: nn.Module = Gate(width, mixture)
        self.up = Bank(mixture.experts, width, mixture.hidden)
        self.down = Bank(mixture.experts, mixture.hidden, width)
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        tokens = x.flatten(0, -2)
        routes = self.gate(tokens)
        if self.training:
            self.balance = balance_loss(routes)
        return self.mix(tokens, routes.chosen, routes.gates).view_as(x)

    def mix(self, tokens: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """Experts `chosen` [tokens, k] weighed by `gates`: calls are sorted by expert, so that each is asked once."""
        calls = chosen.flatten()
        order = calls.argsort(stable=True)
        counts = torch.bincount(calls, minlength=len(self.up.weight)).tolist()
        rows = tokens[order // chosen.shape[1]].split(counts)
        matrices = zip(rows, self.up.weight.unbind(), self.down.weight.unbind(), strict=True)
        outputs = torch.cat([gelu(part @ up) @ down for part, up, down in matrices])
        called = torch.empty_like(outputs).index_copy(0, order, outputs).unflatten(0, chosen.shape)
        return (called * gates[..., None]).sum(1)

    def every_expert(self, tokens: Tensor) -> Tensor:
        """What each expert makes of each token: [tokens, experts, width]."""
        hidden = gelu(torch.einsum("nd,edh->neh", tokens, self.up.weight))
        return torch.einsum("neh,ehd->ned", hidden, self.down.weight)


class MoELM(CharLM):
    """A CharLM with a `MoE` in each block. In training mode `loss` adds the layers' balance losses."""

    def __init__(self, config: Config, mixture: Mixture, seed: int):
        super().__init__(config, seed)
        self.mixture = mixture
        for block in self.blocks:
            block.mlp = MoE(config.width, mixture)
        self.initialise(seed)

    def layers(self) -> list[MoE]:
        """The mixtures, first to last."""
        return [block.mlp for block in self.blocks]

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross entropy in nats per character over windows [batch, time + 1]; in training plus the balance."""
        loss = cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        if not self.training:
            return loss
        return loss + self.mixture.balance * torch.stack([layer.balance for layer in self.layers()]).sum()


def make(seed: int, mixture: Mixture | None = None, layers: int = 2, width: int = 128, context: int = 64) -> MoELM:
    """A freshly initialised model. Values depend on the seed and on each parameter's name and shape only.

    A router starts with N(0, 1/width), so that its logits of normalised tokens have a standard deviation of 1.
    """
    config = Config(layers=layers, width=width, context=context, bias=False)
    return MoELM(config, Mixture() if mixture is None else mixture, seed)


def dense_hidden(mixture: Mixture) -> int:
    """Width of a dense MLP's hidden layer with the multiplications of a token in the mixture, the router's included.

    2 d H = k 2 d h + d E, so H = k h + E / 2, rounded up in favour of the dense model.
    """
    return mixture.top_k * mixture.hidden + math.ceil(mixture.experts / 2)


def make_dense(
    seed: int, mixture: Mixture | None = None, layers: int = 2, width: int = 128, context: int = 64
) -> CharLM:
    """The dense model of equal active multiplications; whatever it shares with `make` starts from equal values."""
    model = CharLM(Config(layers=layers, width=width, context=context, bias=False), seed)
    hidden = dense_hidden(Mixture() if mixture is None else mixture)
    for block in model.blocks:
        block.mlp.up = empty_linear(width, hidden, bias=False)
        block.mlp.down = empty_linear(hidden, width, bias=False)
    model.initialise(seed)
    return model


def validation_and_test(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """The corpus twice, its held-out text halved: the first half is for choices, the second for reported losses.

    Documents stand in the order of their names' hashes, so that the halves share one document at most.
    """
    half = len(corpus.validation) // 2
    first, second = corpus.validation[:half], corpus.validation[half:]
    return dataclasses.replace(corpus, validation=first), dataclasses.replace(corpus, validation=second)
