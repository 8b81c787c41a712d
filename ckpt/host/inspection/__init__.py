"""What a workload is and holds: processes, trees, files with their identity."""
