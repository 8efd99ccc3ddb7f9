"""Shows a study or a run: as tables, plots and the leaderboard page, with the paper's figures beside them."""
