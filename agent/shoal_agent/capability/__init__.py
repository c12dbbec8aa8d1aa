"""What this board can do with its models: measured by `shoal-agent bench`, kept as a document."""
