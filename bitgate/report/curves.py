"""How a training went, epoch by epoch: a table, a sentence on overfitting, a drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from rich.table import Table

from bitgate.sources.losses import Epoch, Losses

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50  #: what axes and title take
TRAINING, VALIDATION = "#3b6ea8", "#c8553d"
#: a rise of validation loss that is no more than the noise of an epoch
SLACK = 0.01


def table(name: str, losses: Losses) -> Table:
    """A line per epoch; the one with the lowest validation loss is marked."""
    best = losses.best()
    found = Table(title=name, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for title in ("epoch", "training loss", "validation loss", "training, %", "validation, %"):
        found.add_column(title, justify="right")
    found.add_column("", no_wrap=True)
    for epoch in losses.epochs:
        marks = ["best"] if best is not None and epoch.epoch == best.epoch else []
        marks += ["kept"] if epoch.epoch == losses.kept else []
        found.add_row(
            str(epoch.epoch),
            f"{epoch.training_loss:.4f}",
            _figure(epoch.validation_loss, 4),
            f"{100 * epoch.training_accuracy:.1f}",
            _figure(epoch.validation_accuracy, 1, 100),
            ", ".join(marks),
            style="bold" if marks else None,
        )
    return found


def _figure(value: float | None, digits: int, scale: float = 1) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"


def verdict(losses: Losses) -> str:
    """Whether validation loss has risen since its lowest, while training loss fell."""
    best, last = losses.best(), losses.epochs[-1]
    if best is None or best.validation_loss is None or last.validation_loss is None:
        return "no validation items: overfitting cannot be seen; give `validation_items`"
    kept = f"the weights are those of epoch {losses.kept}"
    rise = last.validation_loss / best.validation_loss - 1 if best.validation_loss else 0.0
    if best.epoch == last.epoch:
        return f"validation loss was still falling in the last epoch, {last.epoch}; {kept}"
    since = f"epoch {best.epoch} of {last.epoch} ({best.validation_loss:.4f})"
    if rise <= SLACK:
        return f"validation loss has been level since {since}: no overfitting is seen; {kept}"
    return (
        f"validation loss has risen by {100 * rise:.1f} % since {since}: the later epochs overfit; "
        f"{kept}"
    )


def svg(name: str, losses: Losses) -> str:
    """Both losses over the epochs as an SVG, for any browser; a dot marks the lowest validation
    loss."""
    epochs = losses.epochs
    drawn = [epoch.training_loss for epoch in epochs]
    drawn += [epoch.validation_loss for epoch in epochs if epoch.validation_loss is not None]
    low, high = min(drawn), max(drawn)
    high = high if high > low else low + 1

    def x(epoch: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch - 1) / max(len(epochs) - 1, 1)

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    def line(values: Sequence[tuple[int, float]], colour: str, title: str, row: int) -> str:
        points = " ".join(f"{x(epoch):.1f},{y(loss):.1f}" for epoch, loss in values)
        at = WIDTH - RIGHT
        return (
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
            f'<text x="{at}" y="{TOP + 16 * row}" fill="{colour}" text-anchor="end">{title}</text>'
        )

    def parts() -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        )
        yield f'<text x="{LEFT}" y="20" font-size="14">{escape(name)}: loss, nats</text>'
        for loss in (low, (low + high) / 2, high):
            yield (
                f'<path d="M{LEFT} {y(loss):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                f'<text x="{LEFT - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3f}</text>'
            )
        for epoch in sorted({1, (len(epochs) + 1) // 2, len(epochs)}):
            yield (
                f'<text x="{x(epoch):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                f"{epoch}</text>"
            )
        yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">epoch</text>'
        yield line([(e.epoch, e.training_loss) for e in epochs], TRAINING, "training", 1)
        watched = [(e.epoch, e.validation_loss) for e in epochs if e.validation_loss is not None]
        if watched:
            yield line(watched, VALIDATION, "validation", 2)
        if (best := losses.best()) is not None:
            yield _dot(best, x(best.epoch), y(best.validation_loss or 0.0))
        yield "</svg>"

    return "\n".join(parts()) + "\n"


def _dot(best: Epoch, x: float, y: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{VALIDATION}">'
        f"<title>epoch {best.epoch}: {best.validation_loss:.4f}</title></circle>"
    )
