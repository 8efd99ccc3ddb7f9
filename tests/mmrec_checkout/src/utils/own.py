"""A module that MMRec hasn't."""


def double(value):
    return 2 * value
