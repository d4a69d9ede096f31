"""Several processes, on one machine or more, that work on one round: `torch.distributed`'s default process group."""
