"""Training configurations, one file a model."""
