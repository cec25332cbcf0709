"""The page of a report: one file that a browser opens without a server and without a network."""
