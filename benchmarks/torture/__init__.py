"""Batteries of attacks on run folders, to be run with any seed; see `python -m benchmarks.torture`.

A battery is a function of a seed and the share of its cases to try, (0, 1], that returns one
`Outcome` for each case.
"""
