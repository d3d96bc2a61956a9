"""Pushes a run to the Hub: adapter (or model), tokenizer, model card, results, report and images.

    python recipes/publish.py --output_dir runs/tiny_cpu --hub_model_id me/name

The token is that of `hf auth login`, or HF_TOKEN. Training pushes by itself with `--push_to_hub true --hub_model_id
me/name`. Weights that are not finite, or that training did not change, are refused. The card is written anew from
`results.json`, to which recipes/evaluate.py may have added; `--keep_card` pushes the one that you edited.
"""

import argparse


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="what training left")
    parser.add_argument("--hub_model_id", required=True, help="user/name; created if it is not there")
    parser.add_argument("--private", action="store_true", default=None, help="if it is created: for you alone")
    parser.add_argument("--keep_card", action="store_true", help="push README.md as it is")
    args = parser.parse_args()
    from brushup.publishing.hub import publish  # takes ten seconds: --help does not wait for it

    try:
        print(f"pushed to {publish(args.output_dir, args.hub_model_id, args.private, args.keep_card)}")
    except Exception as error:
        from huggingface_hub import constants

        raise SystemExit(f"not pushed to {constants.ENDPOINT}: {error}") from error
