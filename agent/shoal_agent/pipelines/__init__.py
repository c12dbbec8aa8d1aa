"""What a node does by itself: something measured -> a model -> a reading, a command, a message, a line in a file."""
