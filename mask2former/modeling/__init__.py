"""The parts of the segmenter; importing this package registers them."""
