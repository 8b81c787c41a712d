"""Memory that follows a workload which runs already: its pages are brought when they are touched, and all in the end."""
