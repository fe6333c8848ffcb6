"""What is seen of work under way, in a terminal, in a log and in a notebook."""
