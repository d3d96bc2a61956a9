"""A reward whose loading makes a service's generator break at some prompts; at one it takes too long itself."""

import time

import torch

from brushup.render import renderer


TOO_LONG = 7  # seconds; the service is started with a limit of 6 for a batch

call_pipeline = renderer.call_pipeline


def call_breaking_pipeline(pipeline, render_kwargs, output_type, prompts, images_per_prompt, seeds):
    """Run out of memory at "too much memory", and return a white image for "blank"."""
    if "too much memory" in prompts:
        raise torch.OutOfMemoryError("said the test")
    images = call_pipeline(pipeline, render_kwargs, output_type, prompts, images_per_prompt, seeds).clone()
    for number in range(len(images)):
        if prompts[number // images_per_prompt] == "blank":
            images[number] = 1
    return images


renderer.call_pipeline = call_breaking_pipeline


class Breaking:
    def __call__(self, images, user_prompts, prompts):
        if "too slow" in prompts:
            time.sleep(TOO_LONG)
        return [0.5] * len(images)
