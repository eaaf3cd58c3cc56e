"""What a model does rather than what it holds: tasks, replies, and who judges them."""
