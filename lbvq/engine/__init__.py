"""Training and evaluation loops; nothing in here knows about video, masks or methods."""
