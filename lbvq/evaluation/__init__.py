"""Scores of video and image instance segmentation."""
