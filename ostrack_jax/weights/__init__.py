"""Weights of other codes: reading and writing their files, and what their tensors are called here."""
