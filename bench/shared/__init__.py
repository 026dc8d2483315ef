"""What several of the scripts here share."""
