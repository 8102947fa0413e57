"""Diffusion in pure tensors: denoisers, noise schedules, samplers, guidance and losses.

Everything above this package sees one interface, ``denoise(x, sigma, conditioning) -> x0``.
"""
