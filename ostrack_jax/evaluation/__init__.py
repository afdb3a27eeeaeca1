"""Benchmarks, metrics, result files, reports and plots."""
