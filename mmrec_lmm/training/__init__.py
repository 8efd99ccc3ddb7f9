"""Training: of recommenders, of encoders on image-text pairs, and of both end to end."""
