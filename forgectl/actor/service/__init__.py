"""Services: requests routed among replicas, batched, and counted. Pure asyncio."""
