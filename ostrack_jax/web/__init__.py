"""The web page of `ostrack_jax.demo`: clips and tracks of a visitor, examples, and the page itself."""
