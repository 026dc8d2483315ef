"""A family in a Python program."""
