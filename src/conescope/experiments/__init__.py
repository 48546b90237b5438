"""Carry out recipes: run, branch, switch to linearised training, forecast, reproduce the paper."""
