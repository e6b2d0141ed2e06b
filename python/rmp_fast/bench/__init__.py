"""Speed and quality of every method on the same problem, measured side by side; what ``rmp-fast bench`` is made of."""
