"""interim"""
from dataclasses import dataclass
import torch
@dataclass(frozen=True, slots=True)
class Data:
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    classes: int
    def to(self, device, dtype):
        return Data(self.train_x.to(device,dtype),self.train_y.to(device),self.test_x.to(device,dtype),self.test_y.to(device),self.classes)
