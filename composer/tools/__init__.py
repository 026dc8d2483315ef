"""What people do with a family outside of an engine."""
