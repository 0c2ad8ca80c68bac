"""Finds and ends all processes that a generation of a mesh started on a host, and proves that they are gone."""
