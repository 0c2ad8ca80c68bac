"""Tables, reports and JSON documents that commands print."""
