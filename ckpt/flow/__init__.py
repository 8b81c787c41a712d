"""IN WHICH ORDER things happen: the use cases; they know ports, not adapters."""
