"""The tiers of a verification, from the least to the most. They are choices of a flag: nothing is imported here."""

TIERS = ("reported", "recomputed", "replayed", "fresh")
NOTHING = "nothing"  # the tier of a bundle that isn't well-formed
