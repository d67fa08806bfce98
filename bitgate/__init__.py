"""Bitgate decides whether a quantized model is still good enough."""
