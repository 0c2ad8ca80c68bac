"""The data that is stored, printed and sent: plans, statuses, and the environment of ranks."""
