"""The evidence bound of a discrete VAE, its parts and their schedules (arXiv:2106.08254, eq. 2).

    log p(x) >= E_{z ~ q(z|x)} log p(x|z) - KL(q(z|x) || u),    u uniform over the K codes.

All densities are with respect to pixels x in [0, 1]; see `bits_per_dimension` for the 8-bit scale.

Legend: B images, K codes, (h, w) grid of N = h * w places, D = 3 * H * W pixel values.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def logit_laplace_log_density(
    images: Tensor, mean: Tensor, log_scale: Tensor, epsilon: float = 0.1
) -> Tensor:
    """Log-density of each pixel value under the logit-Laplace (arXiv:2102.12092, A.3).

    The distribution is that of y = sigmoid(Laplace(mean, scale)); y = (1 - 2 epsilon) x + epsilon.

    Departure: the reference text leaves out the constant of the change from y to x; here it is
    added, so that the value is a density of x itself and can be compared with the Gaussian's.

    Args:
        images: Pixels x in [0, 1], any shape.
        mean: The Laplace's mean, on the logit scale, same shape.
        log_scale: Logarithm of its scale, same shape.
        epsilon: Half of what the squeeze leaves out.
    """
    squeezed = (1 - 2 * epsilon) * images + epsilon
    log_jacobian = squeezed.log() + (-squeezed).log1p() - math.log(1 - 2 * epsilon)
    distance = (squeezed.logit() - mean).abs() * (-log_scale).exp()
    return -distance - log_scale - math.log(2) - log_jacobian


def gaussian_log_density(images: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-density of each pixel value under a Gaussian on the [0, 1] pixel scale.

    With a fixed variance this is squared error in nats; with a learned one the best variance is the
    mean squared error.
    """
    squared = (images - mean).square() * (-log_variance).exp()
    return -0.5 * (squared + log_variance + math.log(2 * math.pi))


def picture_log_density(images: Tensor, outputs: Tensor, log_variance: Tensor) -> Tensor:
    """Log p(x|z) of whole pictures, in nats.

    Args:
        images: (B, 3, H, W) in [0, 1].
        outputs: (B, 6, H, W), logit-Laplace means then log-scales, or (B, 3, H, W), Gaussian means.
        log_variance: The Gaussian's (0-d); not read for the logit-Laplace.

    Returns:
        (B,) sums over D.
    """
    if outputs.shape[1] == 2 * images.shape[1]:
        mean, log_scale = outputs.chunk(2, dim=1)
        density = logit_laplace_log_density(images, mean, log_scale)
    else:
        density = gaussian_log_density(images, outputs, log_variance)
    return density.flatten(1).sum(1)


class UniformDivergence(NamedTuple):
    """KL(q(z|x) || u) and its exact split; means over places, in nats a place, 0-d tensors.

    total = information + marginal
    """

    total: Tensor  # mean of KL(q(z|x) || u)
    information: Tensor  # I(x; z) = mean of KL(q(z|x) || q̄), q̄ the average posterior
    marginal: Tensor  # KL(q̄ || u)


def uniform_divergence(logits: Tensor) -> UniformDivergence:
    """KL of the plain categorical of the logits to the uniform prior, and its split.

    Temperature plays no part here (arXiv:2102.12092, A.2). The mean runs over images and places, so
    the value does not grow with the batch; times N it is the KL of a picture, summed over places
    and averaged over the batch. Summing it over the batch too, as a widely copied implementation
    does, ties its strength to the batch size and is the best known cause of collapse.

    Args:
        logits: (B, K, h, w).
    """
    # K last: free for channels-last logits, where a softmax over dim 1 would copy them twice.
    log_posterior = functional.log_softmax(logits.movedim(1, -1).float(), dim=-1)
    posterior = log_posterior.exp()
    log_vocabulary = math.log(logits.shape[1])
    places = log_posterior.numel() // logits.shape[1]
    total = log_vocabulary + (posterior * log_posterior).sum() / places
    average = posterior.mean(dim=(0, 1, 2))
    marginal = log_vocabulary - entropy(average)
    return UniformDivergence(total, total - marginal, marginal)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats of distributions along the last dimension; zeros are allowed."""
    result: Tensor = torch.special.entr(probabilities).sum(-1)
    return result


def code_perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of (K,) code counts: how many codes are in even use, 0-d."""
    return entropy(counts / counts.sum().clamp(min=1)).exp()


def code_counts(codes: Tensor, vocabulary: int) -> Tensor:
    """(K,) float32 counts of int64 codes of any shape, without asking the device anything."""
    counts = torch.zeros(vocabulary, device=codes.device)
    return counts.scatter_add_(
        0, codes.flatten(), torch.ones_like(codes.flatten(), dtype=counts.dtype)
    )


def gumbel_softmax(logits: Tensor, temperature: float, *, straight_through: bool = False) -> Tensor:
    """A relaxed draw of codes (arXiv:1611.01144), noise from the default generator.

    Args:
        logits: (B, K, h, w).
        temperature: 1 is smooth; near 0 the draw is nearly one-hot.
        straight_through: Give the one-hot code forward and the relaxed draw's gradient backward.

    Returns:
        (B, K, h, w), sums over K are 1.
    """
    # torch.rand and two logarithms: several times faster on a CPU than exponential_.
    logits = logits.movedim(1, -1)  # (B, h, w, K), as in `uniform_divergence`
    noise = torch.rand_like(logits).clamp_(min=1e-20).log_().neg_().log_()
    relaxed = functional.softmax((logits - noise) / temperature, dim=-1)
    if straight_through:
        hard = torch.zeros_like(relaxed).scatter_(-1, relaxed.argmax(-1, keepdim=True), 1.0)
        relaxed = hard + relaxed - relaxed.detach()
    return relaxed.movedim(-1, 1)


def bits_per_dimension(bound: float, dimensions: int) -> float:
    """Evidence bound in nats a picture to bits a pixel value on the 0..255 scale.

    A density on [0, 1] becomes one on [0, 255] by dividing by 255. The pictures are not
    dequantised, so this is a density's code length at the pixel values, not a bound for a discrete
    code.
    """
    return -bound / (dimensions * math.log(2)) + math.log2(255)


def held_cosine(progress: float, start: float, end: float, hold: float) -> float:
    """`start` for a share `hold` of the run, then half a cosine to `end`.

    Args:
        progress: Share of the run that is done, 0 to 1.
        start: First value.
        end: Last value.
        hold: Share of the run at `start`.
    """
    share = min(1.0, max(0.0, (progress - hold) / max(1e-9, 1 - hold)))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def cosine_ramp(progress: float, final: float, warmup: float) -> float:
    """From 0 to `final` by half a cosine over a share `warmup` of the run, then constant."""
    if warmup <= 0:
        return final
    share = min(1.0, max(0.0, progress / warmup))
    return final * 0.5 * (1 - math.cos(math.pi * share))
