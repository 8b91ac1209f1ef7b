"""Where values are: the store of this node, the registry of locations, and fetching from others."""
