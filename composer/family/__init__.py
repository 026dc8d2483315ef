"""The names of a family, its recipes, and what each name is made of."""
