"""All-rank evaluation: ranking, metrics, and the statistics that compare results."""
