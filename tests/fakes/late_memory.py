"""Memory that comes late, in a world without a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fakes.world import World

from ckpt.errors import CkptError
from ckpt.model.checkpoint import StoredFile
from ckpt.units import ByteCount, CheckpointId, Pid


@dataclass
class FakeLateMemory:
    """Leaves out all pages; `lost` is why they cannot come when the workload runs."""

    world: World
    lost: CkptError | None = None
    serves: bool = False
    left_bytes: ByteCount = ByteCount(0)

    def check(self) -> None:
        self.world.step("can memory come late")

    def has_pages(self, file: StoredFile) -> bool:
        return file.name.startswith("pages-")

    def take(
        self, checkpoint: CheckpointId, root: Pid, images: str, files: Sequence[StoredFile]
    ) -> tuple[StoredFile, ...]:
        self.world.step(f"take over memory of {root}")
        return ()

    def begin(self, operation: object) -> str:
        self.serves = True
        self.world.step("serve memory")
        return "/staging/pages"

    def follow(self) -> CkptError | None:
        self.world.journal.append("memory follows")
        self.world.time += 1_000_000
        self.serves = False
        return self.lost

    def close(self) -> None:
        self.serves = False
