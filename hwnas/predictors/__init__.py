"""Predictors: guesses of losses, with uncertainty where there is any."""
