"""Submissions and boards: bundles of evidence, their verification, and leaderboards that are folders of them."""
