"""Files on disk: how they are read, written, hashed, locked and replaced, and what their faults mean."""
