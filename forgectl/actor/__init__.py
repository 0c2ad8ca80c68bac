"""ForgeActor: a class whose instances are the ranks of a mesh; handles and services."""
