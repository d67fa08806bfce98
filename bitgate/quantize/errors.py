"""What goes wrong when a model is quantized."""


class QuantizeError(RuntimeError):
    """A model cannot be quantized like this; the message names the recipe and the remedy."""
