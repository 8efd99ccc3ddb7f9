"""Configuration: settings, how a schema reads a value, the layers of YAML, and how they resolve to a run."""
