"""The plugin host: what plugins implement and register, and the registry that finds and loads them."""
