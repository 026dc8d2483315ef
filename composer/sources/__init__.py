"""What tensors are read from, and what experts are stored in."""
