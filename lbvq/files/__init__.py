"""Files as every part of the project reads and writes them: whole or not at all (`writing`), images (`images`),
pickles (`torch_files`) without running what stands in them."""
