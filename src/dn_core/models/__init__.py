"""Models that come with the package, and the registry that finds them."""
