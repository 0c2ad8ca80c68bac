"""What the kernel gives us: processes, private files, cgroups, logs with holes."""
