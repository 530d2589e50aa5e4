"""The character language model of all suites: one decoder-only transformer in a few named sizes."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from reference.testbeds.seeding import empty_linear, fill_normal, fill_uniform
from reference.testbeds.text import VOCABULARY


@dataclass(frozen=True)
class Config:
    """Everything that shapes a CharLM.

    `stable_embedding`: Xavier-uniform token embedding with a layer norm behind it, before the positions are added
    (Dettmers et al. 2021, arXiv 2110.02861, section 2.3).
    """

    layers: int
    width: int
    heads: int = 4
    mlp_ratio: int = 4
    context: int = 64
    vocabulary: int = VOCABULARY
    bias: bool = True
    stable_embedding: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")


SIZES = {
    "S": Config(layers=2, width=64),
    "M": Config(layers=4, width=128),
    "P": Config(layers=4, width=64),
}


def make(size: str, seed: int, **changes: int | bool) -> "CharLM":
    """A freshly initialised model of a named size, with fields of `Config` changed: `make("S", 0, context=32)`.

    Initial values depend on the seed and on each parameter's name and shape only, so that variants of one seed share
    what they have in common. Raises KeyError for an unknown size, TypeError for an unknown field.
    """
    if size not in SIZES:
        raise KeyError(f"no size {size!r}; there are {', '.join(SIZES)}")
    return CharLM(dataclasses.replace(SIZES[size], **changes), seed)


class Attention(nn.Module):
    """Causal multi-head attention, softmax(Q K^T / sqrt(d)) V, with its four square matrices kept apart."""

    def __init__(self, config: Config):
        super().__init__()
        self.heads = config.heads
        self.query = empty_linear(config.width, config.width, config.bias)
        self.key = empty_linear(config.width, config.width, config.bias)
        self.value = empty_linear(config.width, config.width, config.bias)
        self.output = empty_linear(config.width, config.width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same shape."""
        projections = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (projection.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in projections)
        return self.output(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(GELU(up(x)))."""

    def __init__(self, config: Config):
        super().__init__()
        self.up = empty_linear(config.width, config.mlp_ratio * config.width, config.bias)
        self.down = empty_linear(config.mlp_ratio * config.width, config.width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same shape."""
        return self.down(gelu(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class CharLM(nn.Module):
    """Pre-norm decoder with learned positions and an untied head without bias."""

    def __init__(self, config: Config, seed: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.utils.skip_init(nn.Embedding, config.vocabulary, config.width)
        self.embedding_norm = nn.LayerNorm(config.width) if config.stable_embedding else nn.Identity()
        self.position_embedding = nn.utils.skip_init(nn.Embedding, config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.head = empty_linear(config.width, config.vocabulary, bias=False)
        self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Set every parameter anew from the seed.

        Linear layers N(0, 1/fan_in), those that write into the residual stream (output, down) over sqrt(2 layers);
        token embedding N(0, 1), or Xavier-uniform if stable; positions and head N(0, 0.02^2); biases 0; norms 1 and 0.
        """
        config = self.config
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
            elif name == "token_embedding.weight" and config.stable_embedding:
                fill_uniform(parameter, math.sqrt(6 / sum(parameter.shape)), seed, name)
            elif name == "token_embedding.weight":
                fill_normal(parameter, 1.0, seed, name)
            elif name in {"position_embedding.weight", "head.weight"}:
                fill_normal(parameter, 0.02, seed, name)
            else:
                residual = name.endswith(("output.weight", "down.weight"))
                std = 1 / math.sqrt(parameter.shape[1] * (2 * config.layers if residual else 1))
                fill_normal(parameter, std, seed, name)

    def forward(self, tokens: Tensor) -> Tensor:
        """Integer codes [batch, time] -> logits [batch, time, vocabulary] of the next character; time <= context."""
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"{tokens.shape[1]} characters do not fit into a context of {self.config.context}")
        positions = self.position_embedding.weight[: tokens.shape[1]]
        x = self.embedding_norm(self.token_embedding(tokens)) + positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross entropy in nats per character, a scalar, over windows [batch, time + 1]."""
        return cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


@dataclass(frozen=True)
class ParameterRoles:
    """Every parameter of a CharLM exactly once, by what an optimizer may do with it; pairs (name, parameter)."""

    linears: list[tuple[str, nn.Parameter]]
    embeddings: list[tuple[str, nn.Parameter]]
    head: list[tuple[str, nn.Parameter]]
    norms: list[tuple[str, nn.Parameter]]
    biases: list[tuple[str, nn.Parameter]]


def parameter_roles(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> ParameterRoles:
    """Sort `model.named_parameters()`: `linears` are the attention and MLP matrices, which projection methods act on.

    `norms` holds gains and offsets of the layer norms, `biases` those of the linear layers.
    """
    roles = ParameterRoles([], [], [], [], [])
    for name, parameter in named_parameters:
        if "norm" in name:
            roles.norms.append((name, parameter))
        elif name.startswith(("token_embedding", "position_embedding")):
            roles.embeddings.append((name, parameter))
        elif name.startswith("head"):
            roles.head.append((name, parameter))
        elif parameter.ndim < 2:
            roles.biases.append((name, parameter))
        else:
            roles.linears.append((name, parameter))
    return roles


def parameter_count(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
