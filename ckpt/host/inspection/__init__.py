"""What a workload is and holds: processes, trees, files with their identity, and what speaks against a dump."""

from ckpt.host.inspection.inspector import HostInspector, HostSurvey, HostView, as_host_view

__all__ = ["HostInspector", "HostSurvey", "HostView", "as_host_view"]
