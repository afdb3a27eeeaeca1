"""TFDS builders, one data set a module; they write ArrayRecord and never import TensorFlow."""
