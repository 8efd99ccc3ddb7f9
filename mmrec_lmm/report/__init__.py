"""What a study or a run is shown as: tables, plots, the page, and the figures of the paper beside them."""
