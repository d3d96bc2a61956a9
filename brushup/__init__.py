"""Brushup: GRPO trains a vision-language model to rewrite prompts so that a diffusion model draws what the user meant."""

__version__ = "0.1.0"
