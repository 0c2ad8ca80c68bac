"""The nouns that are stored, printed and sent: plans, and the environment of ranks."""
