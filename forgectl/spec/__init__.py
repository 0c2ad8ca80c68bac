"""The spec: YAML text in, one frozen, validated model out, or every problem with its line and column."""
