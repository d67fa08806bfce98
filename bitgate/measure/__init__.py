"""What is measured: one module per quantity. Nothing here knows a bound."""
