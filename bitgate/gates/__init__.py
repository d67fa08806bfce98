"""From `thresholds.toml` over rules and intervals to verdicts."""
