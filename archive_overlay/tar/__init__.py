"""The tar format: headers, reading, compression."""
