"""Adversarial training: losses, regularisers and augmentation as pure functions of tensors."""
