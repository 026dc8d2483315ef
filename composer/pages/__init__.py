"""Pages in an engine's memory."""
