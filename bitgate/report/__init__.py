"""What people read: the terminal, later Markdown and HTML."""
