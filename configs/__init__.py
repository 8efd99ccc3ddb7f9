"""Makes this folder part of the wheel; it holds YAML only."""
