"""What makes the broker durable: its sessions, queues and retained messages in one SQLite file."""
