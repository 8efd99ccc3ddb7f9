import torch
import torch.nn as nn


class Filter(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, dim // 2 + 1, 2, dtype=torch.float32))

    def forward(self, x):
        return x * torch.view_as_complex(self.weight)
