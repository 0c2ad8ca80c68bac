"""The messages between our processes: one file per conversation, one table of messages per direction."""
