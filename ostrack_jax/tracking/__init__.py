"""One tracker over one video: frames in, boxes out."""
