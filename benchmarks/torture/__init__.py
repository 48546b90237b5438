"""Batteries of attacks on run folders, files and processes; see `python -m benchmarks.torture`.

A battery is a function of a folder that lists its cases, and may prepare there what they share.
"""
