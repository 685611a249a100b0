"""The loss at fixed draws falls: the start model against the trained one, on noise that was never trained on."""

import torch

from library.data.loader import BatchDataset

SOME_EPOCHS = range(1000, 1004)  # of draws; trained are epochs 1 to 34


@torch.no_grad()
def loss_at_fixed_draws(trainer):
    """Mean over the training pictures, with draws that depend on the seed only."""
    plan = trainer.plan
    data = BatchDataset(
        plan.records,
        plan.crops,
        plan.specs,
        latents=trainer.encoders.latents,
        texts=trainer.encoders.texts,
        seed=trainer.seed,
        max_steps=1,
    )
    batches = [batch for epoch in SOME_EPOCHS for batch in plan.epoch(epoch, seed=trainer.seed, rank=0)]
    losses = [trainer.batch_loss(data[batch]).losses.mean() for batch in batches]
    return torch.stack(losses).mean().item()


def test_loss_at_fixed_draws_falls_by_30_percent_in_100_steps(training):
    names = [path.name for path in sorted(training.examples.iterdir()) if path.suffix != ".txt"]
    dataset = training.dataset(training.pictures(names), batch_size=4)
    trainer = training.unet_only(
        dataset, "--max_train_steps=100", "--network_dim=16", "--network_alpha=16", "--learning_rate=2e-3"
    ).trainer
    trainer.set_training(False)
    after = loss_at_fixed_draws(trainer)
    trainer.network.set_multiplier(0)  # the adapters start with zeros, so this is the start
    before = loss_at_fixed_draws(trainer)
    assert len(trainer.loss_history) == 100
    assert after < 0.7 * before
