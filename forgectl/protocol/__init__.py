"""What our processes say to each other: a file a conversation, a table of messages each way."""
