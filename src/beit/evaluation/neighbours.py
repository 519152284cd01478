"""Weighted nearest-neighbour classification: what frozen features know, without training anything.

The protocol is DINO's (arXiv:2104.14294, section 4.1 and its released evaluation): cosine
similarity, the k most similar training pictures vote for their class with weight
exp(similarity / 0.07), the class with the largest sum wins.
Legend: N training pictures, T test pictures, B images, D width, K neighbours, C classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from beit.batch import ImageBatch
from beit.errors import UserError
from beit.nn.encoder import Encoder

TEMPERATURE = 0.07
NEIGHBOURS = (10, 20, 100, 200)  # 20 is what DINO reports


class Features(NamedTuple):
    """Pictures as vectors, with their classes."""

    features: Tensor  # (N, D) float32
    labels: Tensor  # (N,) int64


def mean_pooled_features(
    encoder: Encoder, batches: Iterable[ImageBatch], device: torch.device, layers: Sequence[int]
) -> dict[int, Features]:
    """Compute the features of whole pictures after several blocks, in one pass.

    Tokens are normalised without learned scale and shift, because blocks in the middle have no
    trained LayerNorm of their own, and averaged over patches without the special token.

    Args:
        encoder: The encoder, on the device; its mode is put back at the end.
        batches: Prepared batches with a patch view and labels, such as evaluation batches.
        device: Where to compute; features come back on the host.
        layers: Blocks, 0-based, negative from the end.

    Returns:
        For each asked layer the features and labels in the order of the batches.

    Raises:
        UserError: There are no pictures, or one has no label.
    """
    collected: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    labels: list[Tensor] = []
    for pooled, known in pooled_batches(encoder, batches, device, layers):
        labels.append(known)
        for layer, features in zip(layers, pooled, strict=True):
            collected[layer].append(features)
    if not labels:
        raise UserError("There is no picture to compute features of: the data set is empty.")
    together = torch.cat(labels)
    return {layer: Features(torch.cat(parts), together) for layer, parts in collected.items()}


def pooled_batches(
    encoder: Encoder, batches: Iterable[ImageBatch], device: torch.device, layers: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same features batch by batch, for sets too large to be held at once.

    Yields:
        On the host (K, B, D) float32 features of the K asked layers, and the (B,) labels.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        for batch in batches:
            known = _labels(batch)
            assert batch.patch_view is not None, "features need the patch view"
            yield _pooled(encoder, batch.patch_view.to(device), layers), known
    finally:
        encoder.train(was_training)


@torch.inference_mode()
def _pooled(encoder: Encoder, images: Tensor, layers: Sequence[int]) -> Tensor:
    outputs = encoder(images, layers=layers).layers
    return torch.stack([pool(tokens) for tokens in outputs]).cpu()


def pool(tokens: Tensor) -> Tensor:
    """Normalise each token of (B, 1 + N, D), then average the patches: (B, D) float32."""
    patches = tokens[:, 1:].float()
    return functional.layer_norm(patches, patches.shape[-1:], eps=1e-6).mean(dim=1)


def _labels(batch: ImageBatch) -> Tensor:
    if batch.label is None or bool((batch.label < 0).any()):
        raise UserError(
            "Nearest neighbours need a label for every picture; "
            "sort the pictures into one folder a class."
        )
    return batch.label.cpu()


def neighbour_predictions(
    train: Features,
    test_features: Tensor,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk: int = 256,
) -> dict[int, Tensor]:
    """Classify test pictures by their most similar training pictures.

    Args:
        train: The pictures that vote.
        test_features: (T, D) on the same device.
        neighbours: How many vote; each is done from one search.
        temperature: Of the weights; small lets only the most similar count.
        chunk: Test pictures at a time: memory is chunk x N similarities.

    Returns:
        For each number of neighbours the (T,) predicted classes; of equal sums the first class.

    Raises:
        UserError: More neighbours are asked for than there are training pictures.
    """
    if not neighbours or max(neighbours) > len(train.labels) or min(neighbours) < 1:
        raise UserError(
            f"{max(neighbours, default=0)} neighbours cannot be found among {len(train.labels)} "
            f"training pictures; ask for 1 to {len(train.labels)}."
        )
    classes = int(train.labels.max()) + 1
    references = functional.normalize(train.features.float(), dim=1)
    queries = functional.normalize(test_features.float(), dim=1)
    predictions: dict[int, list[Tensor]] = {count: [] for count in neighbours}
    for part in torch.split(queries, chunk):
        similarity, nearest = (part @ references.T).topk(max(neighbours), dim=1)  # (t, K)
        weights = (similarity / temperature).exp()
        voters = train.labels[nearest]
        for count in neighbours:
            votes = weights.new_zeros(len(part), classes)
            votes.scatter_add_(1, voters[:, :count], weights[:, :count])
            predictions[count].append(votes.argmax(dim=1))
    empty = train.labels.new_empty(0)
    return {count: torch.cat([empty, *parts]) for count, parts in predictions.items()}


def neighbour_accuracy(
    train: Features,
    test: Features,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """The share of test pictures classified rightly, for each number of neighbours."""
    if not len(test.labels):
        raise UserError("There is no test picture to classify: the data set is empty.")
    predictions = neighbour_predictions(train, test.features, neighbours, temperature)
    return {
        count: (predicted == test.labels).double().mean().item()
        for count, predicted in predictions.items()
    }
