"""Studies: what their files ask for, what runs them, and how their rows compare."""
