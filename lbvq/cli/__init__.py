"""The commands of `lbvq`, one module each: `add_arguments(parser)` and `run(args) -> exit code`."""
