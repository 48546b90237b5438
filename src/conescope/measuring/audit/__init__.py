"""Audit a series of checkpoints: find what is wrong with it, without a model or a kernel."""

from conescope.measuring.audit.findings import Audit, Finding
from conescope.measuring.audit.opened_series import AuditedCheckpoint, opened
from conescope.measuring.audit.series_audit import audit, audit_checkpoints

__all__ = ["Audit", "AuditedCheckpoint", "Finding", "audit", "audit_checkpoints", "opened"]
