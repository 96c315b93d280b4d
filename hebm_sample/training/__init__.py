"""Training: the generator, the prior, and the way from pictures to a folder that `Pipeline`
loads.
"""
