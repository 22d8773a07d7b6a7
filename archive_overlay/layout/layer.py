"""A layer that has been written, and is to be added to an image.

Source: OCI image specification, descriptor.md; layer.md.
"""

from __future__ import annotations

from archive_overlay.system.record import Record

MEDIA_TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


class Layer(Record):
    """A layer.

    Attributes:
        media_type: one of `MEDIA_TYPES`.
        digest: of the compressed tar, "sha256:...".
        size: of the compressed tar, in bytes.
        diff_id: digest of the tar itself.
        entries, deletions: how many are in it, the root directory not counted.
        bytes: of the contents of its files; None if nobody counted them.
    """

    media_type: str
    digest: str
    size: int
    diff_id: str
    entries: int
    deletions: int
    bytes: int | None = None

    @property
    def empty(self) -> bool:
        """Whether it holds nothing but the root directory."""
        return not self.entries and not self.deletions
