"""The driver's side of actors: the run, the meshes launched here, and calls from the CLI."""
