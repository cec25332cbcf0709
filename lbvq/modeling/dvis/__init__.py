"""DVIS and DVIS++: a frozen frame segmenter, a referring tracker over its queries, and a refiner of whole videos."""
