"""Networks as graphs for other runtimes: written by `export_model`, run by `VideoPredictor` and `StreamPredictor`."""
