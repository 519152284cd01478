"""How a global batch is cut: one law for the pictures that are read and the rows of a step."""

from dataclasses import dataclass

from beit.errors import UserError


@dataclass(frozen=True)
class Shares:
    """A batch cut rank by rank, and within a rank micro-batch by micro-batch.

    Raises:
        UserError: The batch does not divide.
    """

    batch_size: int  # B, over all ranks and micro-batches
    ranks: int = 1
    rank: int = 0
    accumulation: int = 1

    def __post_init__(self) -> None:
        if min(self.batch_size, self.ranks, self.accumulation) < 1:
            raise UserError("batch size, ranks and accumulation must be at least 1")
        parts = self.ranks * self.accumulation
        if self.batch_size % parts:
            raise UserError(
                f"a global batch of {self.batch_size} does not divide into {self.accumulation} "
                f"micro-batches on each of {self.ranks} processes: choose a multiple of {parts}"
            )

    @property
    def micro_batch_size(self) -> int:
        """Pictures in one forward pass of one rank."""
        return self.batch_size // (self.ranks * self.accumulation)

    def rows(self, micro_step: int) -> range:
        """The rows of the global batch that micro-batch `micro_step` of this rank takes."""
        start = (self.rank * self.accumulation + micro_step) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)
