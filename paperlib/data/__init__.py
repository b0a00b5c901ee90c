"""Data sets, and the files of those that the library brings, with their licences."""
