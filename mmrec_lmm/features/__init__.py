"""Item features: read from files, or made by an encoder from prepared items."""
