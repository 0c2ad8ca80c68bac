"""What the kernel offers: processes, private files, cgroups, logs with holes."""
