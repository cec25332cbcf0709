"""Running a model over videos: the predictor of whole videos, the predictor of streams, and what both return."""
