"""All that a generation of a mesh started on a host, to be ended and proven gone."""
