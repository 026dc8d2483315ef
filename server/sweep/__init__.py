"""A search for the recipe that answers best: many compositions in the same batches of one engine."""
