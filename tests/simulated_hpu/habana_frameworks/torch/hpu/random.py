import torch


def manual_seed(seed):
    torch.default_generator.manual_seed(seed)
