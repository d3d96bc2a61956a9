"""Brushup: GRPO teaches a vision-language model to rewrite prompts so that a diffusion model draws what was meant."""

__version__ = "0.1.0"
