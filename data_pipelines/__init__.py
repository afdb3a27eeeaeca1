"""Training data: builders that prepare it once, and the pipeline that turns it into batches."""
