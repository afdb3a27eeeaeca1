"""`python -m training` from a checkout; the same as the installed command `ostrack-train`."""

from ostrack_jax.train import run

if __name__ == "__main__":
  run()
