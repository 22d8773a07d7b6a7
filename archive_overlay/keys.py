"""What annotations are called.

The keys and their meaning are those of 2.0.4, and more.
"""

from __future__ import annotations

PREFIX = "com.launchplatform.oci-hooks.archive-overlay."
KEYS = (
    "mount-point",
    "archive-to",
    "success",
    "method",
    "if-exists",
    "owners",
    "exclude",
    "include",
    "exclude-caches",
    "tar-content-owner",
    "compression",
    "compression-level",
    "whiteouts",
    "parent",
    "max-layers",
    "if-moved",
    "base",
    "keep",
    "message",
    "load-as",
    "push-to",
)
