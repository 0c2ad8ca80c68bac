"""What the stacks and recorded collectives of ranks say: where each rank is, and who keeps whom waiting. Pure."""
