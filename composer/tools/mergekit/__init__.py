"""mergekit: its configurations, made into families where the two mean the same."""
