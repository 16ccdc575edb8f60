"""Layers, one file per kind. Shapes: B batch, T time, D width, H heads, K key/value heads, Dh head width, F feed-forward, V vocabulary."""
