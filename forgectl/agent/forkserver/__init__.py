"""Fork servers, both ends: they import once what a mesh preloads, then fork its ranks and its store."""
