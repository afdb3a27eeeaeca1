"""Where each benchmark's frames and annotations lie, and what is peculiar about them."""
