"""Files as every part of the project reads and writes them: whole or not at all (`writing`), images (`images`)."""
