"""Progressive self-knowledge distillation (Kim et al. 2020, arXiv 2006.12000): yesterday's answers soften the targets.

In epoch t of T, the first being 0, an image's target is

    y_t = (1 - alpha_t) onehot + alpha_t P_{t-1}(x),     alpha_t = alpha_T (t + 1) / T,

P_{t-1}(x) being the net's own softmax output when it last saw the image, in the epoch before; the loss is the cross
entropy of P_t with y_t. Before anything was seen, P is the one-hot label: epoch 0 is plain cross entropy.

The gradient by the true class's logit, P_t,y - y_t,y, is that of cross entropy times
1 - alpha (1 - P_{t-1},y) / (1 - P_t,y): images that improved count less than those that did not.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot


def alpha_at(epoch: int, epochs: int, alpha_last: float) -> float:
    """The share of the old answer in epoch 0 .. epochs - 1: rising evenly, `alpha_last` in the last."""
    return alpha_last * (epoch + 1) / epochs


def mixed(labels: Tensor, answers: Tensor, alpha: float) -> Tensor:
    """Targets (1 - alpha) onehot + alpha answers, [n, classes]; `labels` int64 [n], `answers` probabilities."""
    return (1 - alpha) * one_hot(labels, answers.shape[1]).to(answers.dtype) + alpha * answers


def smoothed(labels: Tensor, classes: int, epsilon: float) -> Tensor:
    """Targets of label smoothing, float32 [n, classes]: the answers of one who knows nothing, with alpha = epsilon."""
    return mixed(labels, torch.full((len(labels), classes), 1 / classes, device=labels.device), epsilon)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of softmax(logits) with the targets, both [n, classes], in nats [n]."""
    return -(targets * log_softmax(logits, 1)).sum(1)


class Answers:
    """The table P: for each of the n training images its last softmax output, float32 [n, classes]."""

    def __init__(self, labels: Tensor, classes: int):
        self.table = one_hot(labels, classes).float()

    def targets(self, rows: Tensor, labels: Tensor, alpha: float) -> Tensor:
        """y_t of the images `rows` int64 [n]."""
        return mixed(labels, self.table[rows], alpha)

    def keep(self, rows: Tensor, logits: Tensor) -> None:
        """Remember softmax(logits) as the answers for `rows`."""
        self.table[rows] = torch.softmax(logits.detach().float(), 1)


@torch.no_grad()
def true_class_factor(p: Tensor, answers: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """1 - alpha (1 - answers_y) / (1 - p_y), [n]: the true class's logit gradient over that of cross entropy.

    `p` and `answers` [n, classes] are probabilities; p_y must be below 1.
    """
    column = labels[:, None]
    return (1 - alpha * (1 - answers.gather(1, column)) / (1 - p.gather(1, column)))[:, 0]


@torch.no_grad()
def gradient_pulls(logits: Tensor, targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How an image pulls at the logits relative to cross entropy at the same weights; three float64 [n].

    With P = softmax(logits), P - targets and P - onehot are the two losses' gradients by the logits. The share is
    |P - targets|_1 / |P - onehot|_1, the factor (P_y - targets_y) / (P_y - 1), and last comes the difficulty 1 - P_y.
    """
    column = labels[:, None]
    log_p = log_softmax(logits.double(), 1)
    difficulty = log_p.scatter(1, column, -torch.inf).logsumexp(1).exp().clamp_min(1e-12)
    pull = targets.double() - log_p.exp()
    # 1 - P_y - (1 - target_y), so that no digit is lost where P_y is nearly 1
    true_class = difficulty - (1 - targets.double().gather(1, column)[:, 0])
    others = pull.scatter(1, column, 0.0).abs().sum(1)
    return (others + true_class.abs()) / (2 * difficulty), true_class / difficulty, difficulty
