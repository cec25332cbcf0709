"""Mask2Former: segmentation of single images, and the frame segmenter under every video method.

Shape letters, the same in the whole project:

    B  clips                         N  objects or clip queries
    T  frames                        C  channels
    L  frame-decoder outputs kept    K  classes without "no object"
    D  clip-decoder layers           G  ground-truth objects
    Q  frame queries                 P  points
    H W  pixels                      h w  feature cells

`BT` is the product: clips flattened over frames, clip by clip.
"""
