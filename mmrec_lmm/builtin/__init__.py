"""The host's own metrics and encoder, registered through the same hooks as any plugin's."""
