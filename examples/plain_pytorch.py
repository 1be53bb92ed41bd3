"""Measure the gradient noise scale in a plain PyTorch loop, without Lightning.

    python examples/plain_pytorch.py             # a few seconds on a CPU
    python examples/plain_pytorch.py --epochs 1  # a quick look

Needs: pip install 'lightning-bsscale[examples]' (scikit-learn, for the digits). Each step uses the mean
gradient of several micro-batches. The metric needs only their squared norms and that of the mean.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import GradientNoiseScale
from lightning_bsscale.functional import scale_learning_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=8, help="size of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches per step, at least 2")
    options = parser.parse_args()

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    loader = DataLoader(data, batch_size=options.batch_size, shuffle=True, drop_last=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    parameters = list(model.parameters())
    rate, batch_size = 0.05, options.batch_size * options.accumulate
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    metric = GradientNoiseScale()

    print("epoch  loss    noise scale [90 % interval], in examples")
    for epoch in range(options.epochs):
        metric.reset()
        losses, sq_norms, sizes = [], [], []
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            gradients = torch.autograd.grad(loss, parameters)  # of this micro-batch only
            losses.append(loss.item())
            sq_norms.append(sum(gradient.pow(2).sum() for gradient in gradients))
            sizes.append(len(labels))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                mean = gradient / options.accumulate
                parameter.grad = mean if parameter.grad is None else parameter.grad + mean
            if len(sizes) == options.accumulate:
                metric.update(torch.stack(sq_norms), sum(p.grad.pow(2).sum() for p in parameters), sizes)
                optimizer.step()
                optimizer.zero_grad()
                sq_norms, sizes = [], []
        optimizer.zero_grad()  # drop the micro-batches that do not fill a step
        found = metric.interval()
        print(
            f"{epoch:5d}  {sum(losses) / len(losses):.4f}  {found.noise_scale:.1f} [{found.low:.1f}, {found.high:.1f}]"
        )
    doubled = scale_learning_rate(rate, batch_size, 2 * batch_size, rule="saturating", noise_scale=found)
    print(f"learning rate {rate:g} at batch {batch_size}; at batch {2 * batch_size} it would be {doubled:.3g}")


if __name__ == "__main__":
    main()
