"""What the stacks and recorded collectives of ranks say: where each rank is, and who keeps whom waiting. Pure."""

JOINING = ("init_process_group", "new_group")
"""torch's functions in which ranks wait for others, and which no recorder knows."""
