"""Video files and folders of frames: reading, writing, and drawing what was found into them."""
