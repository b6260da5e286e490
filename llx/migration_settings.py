"""cluster.yaml's ``migration``: how instances move requests."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llx.specs import MigrationSpec

_MIB = 1 << 20


class MigrationSettings(BaseModel):
    """Limits and habits of every instance; what each means is `MigrationSpec`'s."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    reuse_prefix: bool = True
    max_out: int = Field(default=8, ge=1, le=64)
    max_in: int = Field(default=8, ge=1, le=64)
    max_stages: int = Field(default=8, ge=1, le=100)
    on_divergence: Literal["finish", "abort"] = "finish"
    bandwidth_mib_s: float | None = Field(default=None, gt=0, le=1 << 20)
    checksum: bool = False
    transport: Literal["auto", "cuda-ipc", "nccl", "shm", "tcp"] = "auto"

    @property
    def spec(self) -> MigrationSpec:
        """What an instance is given."""
        limit = self.bandwidth_mib_s
        return MigrationSpec(
            reuse_prefix=self.reuse_prefix,
            max_out=self.max_out,
            max_in=self.max_in,
            max_stages=self.max_stages,
            on_divergence=self.on_divergence,
            bandwidth_bytes_s=0 if limit is None else max(1, round(limit * _MIB)),
            checksum=self.checksum,
            transport=self.transport,
        )
