"""A reward whose loading makes a service's generator break at some prompts; at one it takes too long itself."""

import time

import torch

from brushup.render.renderer import Renderer


TOO_LONG = 7  # seconds; the service is started with a limit of 6 for a batch

call_pipeline = Renderer._call_pipeline


def call_breaking_pipeline(renderer, prompts, images_per_prompt, jobs):
    """Run out of memory at "too much memory", and return a white image for "blank"."""
    if "too much memory" in prompts:
        raise torch.OutOfMemoryError("said the test")
    images = call_pipeline(renderer, prompts, images_per_prompt, jobs).clone()
    for image, (prompt, _) in zip(images, jobs, strict=True):
        if prompt == "blank":
            image[:] = 1
    return images


Renderer._call_pipeline = call_breaking_pipeline


class Breaking:
    def __call__(self, images, user_prompts, prompts):
        if "too slow" in prompts:
            time.sleep(TOO_LONG)
        return [0.5] * len(images)
