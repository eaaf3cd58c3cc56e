"""The packaged corpus: stories, twins of work that fails or passes, prompts."""
