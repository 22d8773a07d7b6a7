#!/bin/sh
# Write the man page: tools/manpage.sh OUTPUT
#
# The options come from the program's own parser, everything else from man/sections.in.
set -eu
output=$(realpath -- "$1")
cd "$(dirname -- "$0")/.."

# argparse-manpage takes widths and dates from the environment. The date is that of the last change to
# what the page says.
PYTHONPATH=. TZ=UTC COLUMNS=80 SOURCE_DATE_EPOCH=1795219200 argparse-manpage \
    --module archive_overlay.cli --function build_parser --prog archive_overlay \
    --project-name archive_overlay --manual-title 'Container tools' \
    --version "$(sed -n 's/^__version__ = "\(.*\)"/\1/p' archive_overlay/__init__.py)" \
    --description 'save what a container changed in its overlay mounts' \
    --include man/sections.in --output "$output"

# Each command gets a part of the section on commands; how it is called is in the synopsis.
sed -i -e '/^\.SH$/ { N; s/\n/ /; }' \
    -e "s/^\.SH COMMAND .*'\(archive_overlay .*\)'.*/.SS \1/" \
    -e "/^\.SH OPTIONS .*'archive_overlay .*'/d" \
    -e '/^usage: archive_overlay /,/^$/d' "$output"

# mandoc does not know a date whose hyphens are escaped.
sed -i '1s/\\-/-/g' "$output"
