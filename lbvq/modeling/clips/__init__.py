"""What methods that look at a clip as a whole share: from frame queries to objects."""
