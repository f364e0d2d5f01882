"""A whole training step with noise against the same step without.

Forward of every chunk, gather, noise and loss, backward of every chunk, optimiser, metrics: the trainer's own step on
its own DeepSpeed engine, with a random Qwen2-VL (1.8 M parameters, 128 dimensions) on the CPU. The batch is prepared
beforehand, which makes the share of the noise look larger than it is. The last column measures the loss stage alone,
with and without noise, and gives the difference as a share of the step: the same quantity, less the step's own jitter.
"""

import argparse
from functools import partial

from timing import clock_of, how, paired, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256, help="pairs a step")
    parser.add_argument("--chunk-size", type=int, default=32, help="rows that go through the model at once")
    parser.add_argument("--noise", type=float, default=0.1, help="strength")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()

    from fanoise.process import prepare_process, settle_accelerator

    prepare_process()
    settle_accelerator()
    import setting
    import torch

    torch.set_num_threads(options.threads)
    clock = clock_of(options.threads)
    rows = []
    with setting.workspace(pairs=options.batch_size) as folder:
        for lora in (True, False):
            config = setting.make_config(
                folder, batch_size=options.batch_size, chunk_size=options.chunk_size, lora=lora, noise=options.noise
            )
            training = setting.Training.start(config)
            batch = training.batches()[1]
            kinds = {"with": training.objective(options.noise), "without": training.objective(0.0)}
            steps = paired(
                {name: partial(training.step, batch, objective) for name, objective in kinds.items()},
                rounds=options.rounds,
                clock=clock,
            )
            stage = setting.LossStage(training, batch)
            losses = paired(
                {name: partial(stage.run, objective) for name, objective in kinds.items()},
                rounds=100,
                warmup=10,
                clock=clock,
            )
            added = losses.median_ms("with") - losses.median_ms("without")
            share = added / steps.median_ms("without")
            milliseconds = [f"{steps.median_ms(name):.0f}" for name in ("without", "with")]
            what = "LoRA" if lora else "every parameter"
            rows.append((what, *milliseconds, steps.ratio("with", "without"), f"{added:.1f} ms = {share:.2%}"))
            training.engine.destroy()
    show(("trained", "without ms", "with ms", "with / without", "loss stage: noise adds"), rows)
    print(
        f"batch {options.batch_size}, chunk {options.chunk_size}, strength {options.noise}, "
        f"{options.threads} thread(s); {how(clock)}"
    )


if __name__ == "__main__":
    main()
