"""Runs on disk: what one case yields, and reading runs back."""
