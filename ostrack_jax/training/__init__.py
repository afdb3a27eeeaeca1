"""Targets, losses, optimiser, the step and the loop."""
