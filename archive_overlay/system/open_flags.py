"""Flags for open(2), by what is opened.

The author of a tree must not choose what is opened in it: links are not followed, FIFOs and devices not waited for, and
no terminal becomes the controlling one. Source: open(2).
"""

from __future__ import annotations

import os

# A file's data.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
# A new file.
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# The same, to be read again.
CREATE_AND_READ = CREATE & ~os.O_WRONLY | os.O_RDWR
# An existing file, to append to it.
APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
# A directory, to list it or to change what is in it.
READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# The same, where the user names it: it may be a symbolic link to one.
READ_TOP_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Anything, only for its status: it is not opened itself.
LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# A directory on the way to something.
STEP = LOOK | os.O_DIRECTORY
