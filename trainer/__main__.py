"""`python -m trainer --config trainer/recipes/demo.yaml [--noise.strength 0] …`, alone or under a launcher."""

import os
import sys

from fanoise.errors import cli_errors
from fanoise.process import prepare_process, settle_accelerator


def main(argv: list[str] | None = None) -> int:
    with cli_errors(go_on="--resume auto goes on from the last checkpoint"):
        prepare_process()
        from trainer.command_line import parse

        config = parse(sys.argv[1:] if argv is None else argv)
        settle_accelerator()
        from trainer.train import dry_run, train

        if config.dry_run:
            if os.environ.get("RANK", "0") == "0":
                print(dry_run(config))
            return 0
        run = train(config)
        if os.environ.get("RANK", "0") == "0":
            print(f"finished: {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
