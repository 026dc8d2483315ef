"""What stands around vLLM's OpenAI server."""
