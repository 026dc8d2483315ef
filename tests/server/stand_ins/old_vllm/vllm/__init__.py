"""On PYTHONPATH: a vLLM that is too old."""

raise AssertionError("layerloom has imported a vLLM that it does not work with")
