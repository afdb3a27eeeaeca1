"""The network: concatenated-token ViT, candidate elimination, centre head."""
