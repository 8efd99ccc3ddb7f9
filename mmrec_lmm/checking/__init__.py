"""What is wrong with a data set, and what it holds: computed as data, for `data check` to show."""
