"""Masks of a video as run lengths: one mask (`rle`), the masks of N objects in T frames (`tubes`)."""
