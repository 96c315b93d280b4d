"""Training: the generator, the prior, and the way from images to a folder that `Pipeline`
loads.
"""
