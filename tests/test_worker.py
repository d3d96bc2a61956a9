import pytest

from brushup.worker import LocalWorker, RenderJob, paired_seeds


RED = "a big red circle on a white background"
BLUE = "a small blue square on a yellow background"


def test_pictures_are_scored_against_the_users_prompt(worker):
    right, wrong = worker.score([RenderJob(RED, "crimson disk, huge", 1), RenderJob(RED, "azure box, tiny", 1)])
    assert 0 <= wrong.scores["clip"] < right.scores["clip"] <= 1
    assert right.error is None and right.image is None


def test_submit_gives_what_score_gives(worker):
    jobs = [RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 2)]
    assert [r.scores for r in worker.submit(jobs).result()] == [r.scores for r in worker.score(jobs)]


def test_pictures_come_back_when_asked_for(worker):
    assert worker.score([RenderJob(RED, RED, 1)], return_images=True)[0].image.size == (32, 32)


def test_the_same_picture_for_two_users_is_drawn_once(worker):
    before = worker.images_drawn
    worker.score([RenderJob(RED, "crimson disk", 1), RenderJob(RED, "scarlet ball", 1)])
    assert worker.images_drawn - before == 1


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_picture_that_one_reward_cannot_score_has_no_scores_at_all(renderer, score):
    rewards = {
        "first": lambda images, user_prompts, prompts: [1.0] * len(images),
        "second": lambda images, user_prompts, prompts: [score if p == BLUE else 0.5 for p in prompts],
    }
    good, bad = LocalWorker(renderer, rewards).score([RenderJob(RED, RED, 1), RenderJob(BLUE, BLUE, 1)])
    assert good.scores == {"first": 1.0, "second": 0.5}
    assert bad.scores == {} and "second" in bad.error


def test_seeds_depend_on_run_step_prompt_and_index():
    assert paired_seeds(0, 1, "a cat", 2) == paired_seeds(0, 1, "a cat", 2)
    kinds = [(0, 1, "a cat"), (1, 1, "a cat"), (0, 2, "a cat"), (0, 1, "a dog")]
    seeds = [seed for kind in kinds for seed in paired_seeds(*kind, 3)]
    assert len(set(seeds)) == 12 and all(0 <= seed < 2**32 for seed in seeds)
