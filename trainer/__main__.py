"""`python -m trainer --config trainer/recipes/demo.yaml [--noise.strength 0] …`, alone or under a launcher."""

import os
import sys

from fanoise.errors import ConfigError, cli_errors
from fanoise.process import prepare_process, settle_accelerator


def main(argv: list[str] | None = None) -> int:
    prepare_process()
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    from trainer.config import RunConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    with cli_errors():
        parser = ArgumentParser(prog="python -m trainer", description=RunConfig.__doc__, exit_on_error=False)
        parser.add_argument("--config", action="config", help="Recipe (YAML); options after it override it.")
        parser.add_argument("--local_rank", type=int, default=0, help="Set by the DeepSpeed launcher; not for people.")
        parser.add_class_arguments(RunConfig, as_group=False)
        try:
            values = parser.parse_args(argv)
            values.pop("config", None)
            values.pop("local_rank", None)
            config = parser.instantiate(values)
        except (ArgumentError, ConfigError) as error:
            raise ConfigError(str(error)) from None
        settle_accelerator()
        from trainer.train import dry_run, train

        config = RunConfig(**vars(config))
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
