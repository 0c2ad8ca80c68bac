"""The driver's side of actors: the run, the meshes launched here, and who calls from outside."""
