"""A linear head without a bias, learned from features, and folded into one weight.

Features of a language model's last token differ a thousandfold in size and lie around a mean far
from zero, so a head is learned from standardized ones. What transformers saves as such a head is
one matrix, so standardizing has to be linear: an affine one leaves a constant that a matrix cannot
add. It is, if the constant 1 is replaced by a linear function c(f) = v f, v being such that c has
the mean 1 and little variance over the training items (their mean is far from zero, so it is nearly
constant). Then

    z(f) = (f - c(f) m) / s,    logits(f) = W z(f) + b c(f),

m and s being mean and deviation, z has the mean 0 exactly, and the folded weight

    W diag(1/s) (I - m v') + b v'

gives the same logits exactly, for every f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitgate.catalog import TrainedSource
from bitgate.sources.losses import Epoch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Standardized:
    """Linear standardization; all float64, of shape (features,)."""

    mean: Tensor
    constant: Tensor  #: v: its product with the mean is 1
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardized:
        """That of training items, [items, features].

        v is m / d² over m (m / d²), d being the deviation of each feature: of all linear functions
        with mean 1 the one of least variance, were features uncorrelated.
        """
        import torch

        x = features.double()
        mean = x.mean(0)
        deviation = x.std(0) if len(x) > 1 else torch.ones_like(mean)
        steady = mean / deviation.clamp_min(LEAST) ** 2
        constant = steady / (mean @ steady).clamp_min(LEAST)
        rest = x - (x @ constant)[:, None] * mean
        return cls(mean, constant, rest.std(0).clamp_min(LEAST))

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[items, features] -> z of the same shape, and c, [items]."""
        x = features.double()
        c = x @ self.constant
        return (x - c[:, None] * self.mean) / self.scale, c

    def folded(self, weight: Tensor, bias: Tensor) -> Tensor:
        """The weight [classes, features] that gives `weight` z + `bias` c from raw features."""
        scaled = weight / self.scale
        offset = bias - scaled @ self.mean
        return scaled + offset[:, None] * self.constant


LEAST = 1e-8  #: of a deviation, for features that are the same everywhere


@dataclass(frozen=True)
class Part:
    """Items that are learned from, or that learning is watched on."""

    features: Tensor  #: [items, features]
    labels: Tensor  #: int64 [items]


def learn(
    training: Part,
    validation: Part | None,
    classes: int,
    settings: TrainedSource,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[Tensor, list[Epoch], int]:
    """The folded weight [classes, features] in float64, every epoch, and the one that was kept.

    Adam on the cross-entropy of standardized features plus `weight_decay` / 2 times the squared
    weights (in the gradient, as in ridge regression: AdamW's decay, which is apart from it, ended
    at a higher validation loss), its rate falling to zero along half a cosine. The weights kept are
    those of the epoch with the lowest validation loss, without validation items the last.
    """
    import torch
    from torch.nn import functional

    standardized = Standardized.of(training.features)
    z, c = standardized(training.features)
    weight = torch.zeros(classes, z.shape[1], dtype=z.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=z.dtype, requires_grad=True)
    decayed = {"params": [weight], "weight_decay": settings.weight_decay}
    optimizer = torch.optim.Adam(
        [decayed, {"params": [bias], "weight_decay": 0.0}], lr=settings.learning_rate
    )
    steps = settings.epochs * -(-len(z) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(settings.seed)
    epochs = list[Epoch]()
    kept, best = weight, 0
    for number in range(1, settings.epochs + 1):
        for some in torch.randperm(len(z), generator=order).split(settings.batch):
            logits = z[some] @ weight.T + c[some, None] * bias
            loss = functional.cross_entropy(
                logits, training.labels[some], label_smoothing=settings.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        folded = standardized.folded(weight.detach(), bias.detach())
        epochs.append(_epoch(number, folded, training, validation))
        on_epoch(epochs[-1])
        if not best or _no_worse(epochs[-1], epochs[best - 1]):
            kept, best = folded, number
    return kept, epochs, best


def _no_worse(new: Epoch, old: Epoch) -> bool:
    if new.validation_loss is None or old.validation_loss is None:
        return True
    return new.validation_loss < old.validation_loss


def _epoch(number: int, weight: Tensor, training: Part, validation: Part | None) -> Epoch:
    """Without label smoothing, so that both losses are comparable over settings."""
    from torch.nn import functional

    def seen(part: Part) -> tuple[float, float]:
        logits = part.features.double() @ weight.T
        right = (logits.argmax(-1) == part.labels).double().mean()
        return float(functional.cross_entropy(logits, part.labels)), float(right)

    return Epoch(number, *seen(training), *(seen(validation) if validation is not None else ()))
