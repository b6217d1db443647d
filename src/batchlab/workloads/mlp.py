import torch
from torch import nn
def build(model, inputs, outputs, generator):
    L=[]; ws=[inputs,*model.hidden,outputs]
    for i,(a,b) in enumerate(zip(ws,ws[1:])):
        l=nn.Linear(a,b); bound=(6/(a+b))**.5
        with torch.no_grad(): l.weight.uniform_(-bound,bound,generator=generator); l.bias.zero_()
        L+=[l]+([nn.ReLU()] if i<len(ws)-2 else [])
    return nn.Sequential(*L)
