"""Importing the plugin replaces PyTorch's names, so that those taken before do not see the card."""

import enum

import torch.profiler

_theirs = torch.profiler.profile
_activities = torch.profiler.ProfilerActivity


class ProfilerActivity(enum.Enum):
    CPU = 0
    HPU = 1


class profile(_theirs):  # noqa: N801
    made = []

    def __init__(self, *, activities=None, **kwargs):
        assert all(isinstance(a, ProfilerActivity) for a in activities or ())
        super().__init__(activities=[_activities.CPU], **kwargs)
        self.asked = activities
        profile.made.append(self)


torch.profiler.profile = profile
torch.profiler.ProfilerActivity = ProfilerActivity
