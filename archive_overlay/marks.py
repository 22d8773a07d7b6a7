"""Names by which overlays and image layers mark deletions, opaque directories, and what is theirs.

Source: the kernel's Documentation/filesystems/overlayfs.rst; OCI image specification, layer.md, "Whiteouts"; for
fuse-overlayfs, its behaviour as measured.
"""

from __future__ import annotations

# In a layer, an entry .wh.NAME deletes NAME, and one of the second name makes its directory opaque. fuse-overlayfs has
# the same where it cannot make devices.
WHITEOUT_PREFIX = ".wh."
OPAQUE_MARKER = ".wh..wh..opq"

# What begins with one of these is an overlay's own: the kernel's, its own with the mount option userxattr, and
# fuse-overlayfs'.
TRUSTED = "trusted.overlay."
USER = "user.overlay."
FUSE_USER = "user.fuseoverlayfs."
FUSE_SECURITY = "security.fuseoverlayfs."

# Owner and mode of a file in a store in which all files are the engine's: fuse-overlayfs gives them.
ENGINE_OWNER = "user.containers.override_stat"

# A directory that has one of these with the value "y" is opaque.
TRUSTED_OPAQUE = f"{TRUSTED}opaque"
USER_OPAQUE = f"{USER}opaque"
FUSE_OPAQUE = f"{FUSE_USER}opaque"
FUSE_ORIGIN = f"{FUSE_USER}origin"

# A tar of this program says which marks are in it, by a comment in the extended header of its first entry, the root
# directory: this, and the marks by the name that `--marks` has for them. A container chooses names, contents and
# attributes, and none of these becomes a comment. (A comment in a global header would do, if umoci read those.)
FORM_COMMENT = "archive_overlay marks="
# What follows, by the attribute that makes a directory opaque in that tar.
FORMS = {TRUSTED_OPAQUE: "trusted", USER_OPAQUE: "user", "": "oci"}

# This program marks its staging directories by one of these: the first, or in a user namespace the second. No archive
# has them.
TRUSTED_STAGING = f"{TRUSTED}archive_overlay"
USER_STAGING = f"{USER}archive_overlay"
