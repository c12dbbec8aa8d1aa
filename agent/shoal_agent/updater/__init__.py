"""Which releases are real and fresh: signed metadata (TUF), judged in a short-lived child of the agent."""
